"""`main.py analyze`: what is found, what is written, and what is said where checkpoints are missing."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter
from torch import nn

from main import main
from models import resolve_config
from models.analysis.states import watched
from models.tools.analyze import analyze
from tests.analysis_samples import make_analysis
from tests.run_files import SYNTHETIC, only_run, tiny_config
from trainer import train
from utils.data.data_manager import DataManager
from utils.errors import UserError
from utils.files import write_atomic
from utils.report.analysis import Analysis


@pytest.fixture
def no_pictures(monkeypatch):
    """Pictures take most of a tiny run's time."""
    monkeypatch.setattr("trainer.write_report", lambda result, folder: None)
    monkeypatch.setattr("models.tools.analyze.write_analysis_page", lambda _, folder: write_atomic(folder / "analysis.html", "page"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three tasks (2 + 2 + 1 classes) of SLCA with every task's checkpoint."""
    out = tmp_path_factory.mktemp("logs")
    train(tiny_config(epochs=1, keep_checkpoints="all", lr=0.1, bcb_lrscale=1.0), out, name="slca")
    folder = only_run(out / "slca")
    analyze(folder, device="cpu")
    return folder


def read(folder) -> Analysis:
    return TypeAdapter(Analysis).validate_json((folder / "analysis.json").read_bytes())


def test_every_state_from_the_pre_trained_one_on_is_measured(run):
    found = read(run)
    assert found.states == ["pre-trained", "task 1", "task 2", "task 3"] and found.note == ""
    assert len(found.probe_all) == len(found.nearest_mean_all) == len(found.cka) == 4
    assert found.probe_seen[0] is None and found.probe_all[3] == found.probe_seen[3]
    assert found.blocks == ["block 1", "block 2", "features"] and found.cka[0] == pytest.approx([1, 1, 1])
    assert all(0 <= value <= 1 + 1e-9 for row in found.cka for value in row) and found.cka[3] != found.cka[0]
    assert [sum(value is not None for value in row) for row in found.mean_cosine] == [0, 2, 4, 5]


def test_gaussians_are_true_where_their_class_was_just_learned_and_stale_later(run):
    found = read(run)
    assert found.stored and [sum(value is not None for value in row) for row in found.frechet] == [0, 2, 4, 5]
    for state, classes in ((1, [0, 1]), (2, [2, 3]), (3, [4])):  # of the state's own task
        assert max(found.frechet[state][c] for c in classes) < 1e-3
    assert min(found.frechet[2][0], found.frechet[3][0]) > 1e-3


def test_the_classifier_gets_what_the_run_reported(run):
    reported = json.loads((run / "results.json").read_text())["seeds"][0]["top1_curve"]
    assert read(run).classifier_seen[1:] == pytest.approx(reported)


def test_the_heads_are_measured_before_and_after_alignment(run):
    heads = read(run).heads
    assert list(heads) == ["before", "after"] and len(heads["after"].share) == 3
    for bias in heads.values():
        assert sum(bias.share) == pytest.approx(100) and min(bias.weight_norm) > 0
    assert heads["before"].weight_norm != heads["after"].weight_norm


def test_worst_classes_come_first_with_what_took_their_images(run):
    worst = read(run).worst
    assert [one.accuracy for one in worst] == sorted(one.accuracy for one in worst) and len(worst) == 5
    for one in worst:
        assert one.accuracy + sum(share for _, share in one.taken_for) == pytest.approx(100)
        assert [distance for _, distance in one.nearest] == sorted(distance for _, distance in one.nearest) and len(one.nearest) == 3


def test_examples_are_test_images_of_the_class_that_were_taken_for_another(run):
    data = DataManager(resolve_config(tiny_config()), seed=1993)
    indices = data.task_indices("test", range(3))
    own = dict(zip(data.stream.class_names, range(5), strict=True))
    for one in read(run).worst:
        images = data.pixels("test", indices[data.labels_of("test", indices) == own[one.name]])
        assert len(one.examples) == min(4, round(len(images) * (100 - one.accuracy) / 100))
        for example in one.examples:
            assert example.taken_for in [name for name, _ in one.taken_for]
            shown = torch.from_numpy(np.array(Image.open(io.BytesIO(base64.b64decode(example.image.partition(",")[2])))))
            assert any(torch.equal(shown.permute(2, 0, 1), image) for image in images)


def test_the_page_stands_alone_and_the_pictures_lie_beside_it(run):
    text = (run / "analysis.html").read_text()
    assert text.count("data:image/svg+xml;base64,") == 6 and "A linear probe on all classes gets" in text
    pictures = ("knowledge", "cka", "staleness", "frechet", "heads", "map")
    names = {f"analysis_{name}.{suffix}" for name in pictures for suffix in ("png", "svg", "pdf")}
    assert names <= {path.name for path in run.iterdir()}


def test_with_the_last_checkpoints_alone_it_does_what_they_allow_and_says_so(tmp_path):
    train(tiny_config(epochs=1, model_name="finetune"), tmp_path, name="finetune")
    folder = only_run(tmp_path / "finetune")
    assert main(["analyze", str(tmp_path / "finetune"), "--device", "cpu", "--images", "4"]) == 0
    found = read(folder)
    assert found.states == ["pre-trained", "task 2", "task 3"] and "keep_checkpoints 'all'" in found.note
    assert list(found.heads) == ["after"] and not found.stored  # no alignment, no statistics
    assert [sum(value is not None for value in row) for row in found.frechet] == [0, 4, 5]
    assert "keep_checkpoints" in (folder / "analysis.html").read_text()


@pytest.mark.parametrize("method", ["ncm", "mos", "dualprompt"])
def test_methods_without_heads_or_with_several_passes_are_analysed(method, tmp_path, no_pictures):
    train(tiny_config(epochs=1, model_name=method, keep_checkpoints="all"), tmp_path, name="run")
    analyze(tmp_path / "run", per_class=4, device="cpu")
    found = read(only_run(tmp_path / "run"))
    assert len(found.probe_all) == 4 and np.isfinite(found.cka).all()


def test_a_run_may_be_analysed_at_its_end_and_a_failing_analysis_leaves_it_finished(tmp_path, no_pictures, monkeypatch, caplog, capsys):
    config = tiny_config(epochs=0, ca_epochs=0, analyze=True)
    monkeypatch.setattr("models.tools.analyze._analyse", lambda *_: 1 / 0)
    train(config, tmp_path, name="run")
    folder = only_run(tmp_path / "run")
    assert "could not be analysed: ZeroDivisionError" in caplog.text and json.loads((folder / "run.json").read_text())["finished"]
    monkeypatch.setattr("models.tools.analyze._analyse", lambda *_: make_analysis())
    train(config, tmp_path, name="run", resume=True)  # what is missing is made
    assert (folder / "analysis.html").is_file() and f"analysis: {folder / 'analysis.html'}" in capsys.readouterr().out
    train(config, tmp_path, name="run", resume=True)
    assert caplog.text.count("could not be analysed") == 1


@pytest.mark.parametrize("settings", [{"keep_checkpoints": "none"}, {"scenario": "domain", "dataset": {**SYNTHETIC, "num_domains": 2}}])
def test_a_run_that_could_not_be_analysed_at_its_end_is_refused_at_its_beginning(settings, tmp_path):
    with pytest.raises(UserError, match="analyze: true"):
        train(tiny_config(analyze=True, **settings), tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_run_without_checkpoints_and_a_seed_that_is_not_there_are_user_errors(tmp_path, run, no_pictures):
    train(tiny_config(epochs=1, model_name="ncm", keep_checkpoints="none"), tmp_path, name="run")
    with pytest.raises(UserError, match="no checkpoint of seed"):
        analyze(tmp_path / "run", device="cpu")
    with pytest.raises(UserError, match="seed: got 7, allowed: 1993"):
        analyze(run, seed=7, device="cpu")
    assert main(["analyze", str(run), "--images", "1"]) == 2


def test_blocks_of_a_convolutional_network_are_watched_by_their_stages():
    model = nn.Sequential()
    model.layer1, model.layer2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
    with watched(model) as outputs:
        model(torch.zeros(2, 3, 8, 8))
    assert {name: tuple(output.shape) for name, output in outputs.items()} == {"layer1": (2, 4), "layer2": (2, 5)}
    assert not model.layer1._forward_hooks


def test_a_link_that_leads_out_of_the_runs_folder_is_refused_before_the_analysis(run, tmp_path):
    (run / "elsewhere.svg").symlink_to(tmp_path)
    try:
        with pytest.raises(UserError, match="outside of the run's folder"):
            analyze(run, device="cpu")
    finally:
        (run / "elsewhere.svg").unlink()
