"""--profile: traces and a table beside an ordinary run."""

import json

from tests.support import make_config
from trainer import train

SYNTHETIC = {"name": "tiny", "layout": "synthetic", "num_classes": 4, "image_size": 16, "train_per_class": 10, "test_per_class": 2,
             "train_transform": "none"}


def test_every_stage_is_traced_and_the_figures_are_those_of_an_ordinary_run(tmp_path):
    config = make_config(dataset=SYNTHETIC, batch_size=5, ca_epochs=1, ca_samples=8)
    profiled = train(config, tmp_path, name="profiled", profile=True)
    plain = train(config, tmp_path, name="plain")
    assert profiled.seeds[0].top1_curve == plain.seeds[0].top1_curve
    folder, = tmp_path.glob("profiled/*/seed1993/profile")
    table = (folder / "stages.txt").read_text()
    for stage in ("train", "statistics", "alignment", "evaluation"):
        events = json.loads((folder / f"{stage}.json").read_text())["traceEvents"]
        assert any("aten::" in str(event.get("name")) for event in events), stage
        assert f"\n{stage} " in table or table.startswith(stage)
    assert not list(tmp_path.glob("plain/*/seed1993/profile"))
