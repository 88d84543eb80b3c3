"""models/anytime.py and whole runs on blurry, few-shot, long-tailed and mixed streams."""

from __future__ import annotations

import json

import pytest

import trainer
from models.anytime import AnytimeAccuracy
from models.base import BaseLearner
from tests.run_files import assert_same_run, only_run, tiny_config
from tests.support import learn, make_config, synthetic_learner
from tests.utils.run.test_resume import run_stopping_at_every_checkpoint
from trainer import test as evaluate_run
from trainer import train
from utils.errors import DataChanged, UserError
from utils.report.comparable import check_comparable
from utils.report.compare_tables import Entry
from utils.report.results import read_results
from utils.run.monitor import Monitor

BLURRY = {"blurry": {"tasks": 3, "disjoint": 60, "blurry": 40, "measure_every": 8}, "init_cls": None, "increment": None, "epochs": 1,
          "batch_size": 1}
PROTOCOLS = {
    "few_shot": ({"few_shot": {"shots": 2}}, "few-shot, 2 images of each class after the first task"),
    "long_tail": ({"long_tail": {"ratio": 4, "order": "shuffled"}}, "long tail, shuffled, ratio 4"),
    "blurry": (BLURRY, "Si-Blurry, one pass, 60 % disjoint classes"),
}


@pytest.fixture
def no_pictures(monkeypatch):
    """Pictures take most of a tiny run's time."""
    monkeypatch.setattr(trainer, "write_report", lambda result, folder: None)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_run_resumed_everywhere_is_the_same_run_and_names_its_protocol(protocol, tmp_path, monkeypatch, no_pictures):
    settings, words = PROTOCOLS[protocol]
    config = tiny_config(**{"epochs": 1, **settings})
    result = train(config, tmp_path / "whole", name="run")
    assert run_stopping_at_every_checkpoint(config, tmp_path / "stopped", monkeypatch) >= 2
    assert_same_run(only_run(tmp_path / "whole" / "run"), only_run(tmp_path / "stopped" / "run"))
    assert words in json.loads((only_run(tmp_path / "whole" / "run") / "results.json").read_text())["protocol"]
    assert evaluate_run(config, tmp_path / "whole", name="run").summary["last"] == result.summary["last"]
    seed = result.seeds[0]
    assert (seed.last_harmonic is not None) == (protocol == "few_shot")
    assert (seed.anytime_accuracy is not None) == (protocol == "blurry")
    if protocol == "few_shot":
        assert seed.harmonic_curve[0] is None and seed.average_harmonic == pytest.approx(sum(seed.harmonic_curve[1:]) / 2)
    if protocol == "blurry":
        assert [point["images"] // 8 for point in seed.anytime] == list(range(1, 6)), "40 images, a measurement every 8"


def test_a_page_of_a_few_shot_run_shows_harmonic_accuracy_and_the_protocol(tmp_path):
    train(tiny_config(epochs=1, few_shot={"shots": 2}), tmp_path, name="run")
    page = (only_run(tmp_path / "run") / "report.html").read_text()
    assert "Last harmonic accuracy" in page and "few-shot, 2 images of each class after the first task" in page
    assert "harmonic,all," in (only_run(tmp_path / "run") / "results_tidy.csv").read_text()


def test_runs_of_different_protocols_do_not_compare(tmp_path, no_pictures):
    for name, settings in (("few", {"few_shot": {"shots": 2}}), ("all", {})):
        train(tiny_config(epochs=1, model_name="ncm", **settings), tmp_path, name=name)
    entries = [Entry(name, name, read_results(only_run(tmp_path / name) / "results.json")) for name in ("few", "all")]
    with pytest.raises(UserError, match=r"learned different data.*few-shot, 2 images"):
        check_comparable(entries)


def test_a_changed_index_file_is_noticed_on_resuming(tmp_path, no_pictures, monkeypatch):
    listed = tmp_path / "list.txt"
    listed.write_text("16\n24\n32\n")  # of the synthetic set's classes 2, 3 and 4, eight images each
    config = tiny_config(model_name="ncm", shuffle=False, few_shot={"shots": 1, "images": str(listed)})
    train(config, tmp_path, name="run")
    listed.write_text("17\n24\n32\n")
    with pytest.raises(DataChanged, match="the images that the protocol takes are others"):
        evaluate_run(config, tmp_path, name="run")


def blurry_learner(method: str, **settings) -> BaseLearner:
    return synthetic_learner(method, **{**BLURRY, **settings})


@pytest.mark.parametrize("method", ["slca", "replay"])
def test_images_of_known_classes_are_learned_from(method):
    learner = blurry_learner(method)
    learn(learner, range(3))
    data = learner.data
    again = [len(data.task_indices("again", task)) for task in range(3)]
    assert sum(again) > 0
    if method == "slca":
        assert sum(gaussian.count for gaussian in learner.gaussians.classes) == data.count("train", range(3)) + sum(again)
    else:
        task = again.index(max(again))
        assert set(data.task_indices("again", task)) <= set(learner.training_indices(task))


def test_methods_that_cannot_learn_from_known_classes_refuse_a_blurry_stream():
    with pytest.raises(UserError, match="blurry: lwf cannot learn from more images of classes that it knows"):
        blurry_learner("lwf")


def test_accuracy_inside_a_task_counts_the_classes_that_have_come(monkeypatch):
    learner, points = blurry_learner("replay"), []
    learner.begin_task(0)
    watch = AnytimeAccuracy(learner, 0, points)
    labels = learner.data.labels("test", 0)
    monkeypatch.setattr(learner, "scores", lambda features: (-features[:, :1]).expand(-1, learner.stream.classes_upto(0)))  # all alike
    for first in (0, 1):
        watch.seen[first] = 1
        found = watch.measure()  # the first class that has come wins every tie
        seen = [c for c in range(first + 1) if c < learner.stream.classes_upto(0)]
        assert found == pytest.approx(100 * (labels == 0).sum() / sum((labels == c).sum() for c in seen))
    assert points == []


def test_a_readout_from_the_statistics_has_no_accuracy_inside_a_task():
    learner, points = blurry_learner("slca", readout="rgda"), []
    learner.after_step = AnytimeAccuracy(learner, 0, points)
    learner.learn_task(0, Monitor())
    assert points == []


def test_a_mixed_stream_is_learned_and_a_long_one(tmp_path, no_pictures):
    domains = {"name": "tiny", "layout": "synthetic", "num_classes": 2, "num_domains": 3, "image_size": 16, "train_per_class": 4,
               "test_per_class": 2}
    mixed = train(make_config(dataset=domains, scenario="domain", domains_per_task=2, init_cls=None, increment=None, batch_size=8,
                              ca_epochs=1, ca_samples=8), tmp_path, name="mixed")
    assert mixed.seeds[0].task_sizes == [2, 2] and "2 domains mixed in each task" in mixed.protocol
    long = {**domains, "num_domains": 1, "num_classes": 50}
    result = train(make_config(model_name="ncm", dataset=long, init_cls=1, increment=1), tmp_path, name="long")
    assert len(result.seeds[0].top1_curve) == 50
