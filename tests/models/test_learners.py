"""One end-to-end run per learner on synthetic images, through the trainer."""

import pytest

from models import LEARNERS
from tests.support import make_config
from trainer import train

SYNTHETIC = {"name": "tiny", "layout": "synthetic", "num_classes": 5, "image_size": 16, "train_per_class": 12, "test_per_class": 4,
             "train_transform": "none"}


@pytest.mark.parametrize("method", LEARNERS)
def test_learner_runs_from_config_to_results(method, tmp_path):
    config = make_config(model_name=method, dataset=SYNTHETIC, batch_size=8, epochs=2, ca_epochs=1, ca_samples=16, memory_size=20)
    result = train(config, tmp_path)
    seed = result.seeds[0]
    tasks = len(seed.task_sizes)
    assert sum(seed.task_sizes) == 5
    assert all(0 <= accuracy <= 100 for accuracy in seed.top1_curve)
    assert [len(row) for row in seed.accuracy_matrix] == [tasks] * tasks
    run = next((tmp_path / method).iterdir())
    for name in ("results.json", "results.csv", "report.html", "curve.png", "matrix.png",
                 f"seed{seed.seed}/log.txt", f"seed{seed.seed}/metrics.jsonl"):
        assert (run / name).stat().st_size > 0, name


def test_slca_runs_on_a_resnet(tmp_path):
    config = make_config(dataset={**SYNTHETIC, "image_size": 32}, convnet_type="timm/resnet10t", batch_size=8, ca_epochs=1, ca_samples=16)
    assert train(config, tmp_path).seeds[0].last is not None
