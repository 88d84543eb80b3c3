"""The dry run's estimate of time."""

import re

import numpy as np
import pytest
import torch

from models import LEARNERS, resolve_config
from models.tools.dry_run import describe_run, shape_learner
from models.tools.timing import _alignment_seconds, estimate_time
from tests.support import make_config, that_it_has
from utils.data.data_manager import DataManager

SYNTHETIC = {"name": "tiny", "layout": "synthetic", "num_classes": 4, "image_size": 16, "train_per_class": 30, "test_per_class": 2,
             "train_transform": "none"}

NOTHING_TRAINS = ("ncm", "lda", "fecam", "ranpac")


def tiny_run(method):
    return make_config(**that_it_has(method, {"model_name": method, "dataset": SYNTHETIC, "batch_size": 10, "memory_size": 20}))


@pytest.mark.parametrize("method", LEARNERS)
def test_with_data_and_weights_two_batches_are_measured(method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = estimate_time(tiny_run(method))
    assert "measured on 2 batches of 10 on cpu" in text and "task(s)" in text
    measured = [float(x) for x in re.findall(r"([\d.]+) ms", text)]  # per image in training, without gradient
    assert len(measured) == (1 if method in NOTHING_TRAINS else 2) and min(measured) > 0
    assert not list(tmp_path.iterdir())  # a dry run writes nothing


@pytest.mark.parametrize(("method", "changes", "trains"), [("ranpac", {"first_session": "adapter"}, True), ("slca", {
    "bcb_lrscale": 0.0, "readout": "rgda"}, False), ("slca", {"bcb_lrscale": 0.0}, True)])
def test_nothing_trains_is_said_where_no_task_has_a_training_step(method, changes, trains):
    text = estimate_time(make_config(model_name=method, dataset=SYNTHETIC, batch_size=10, **changes))
    assert ("nothing trains" not in text) == trains == ("in training" in text)


def test_without_data_it_is_computed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = estimate_time(make_config(dataset="cifar100_224", init_cls=10, increment=10, epochs=20))
    assert "computed from" in text and "GFLOP per image" in text and "the data are not in data/cifar-100-python" in text
    assert "10 task(s)" in text


def test_a_device_that_is_not_there_is_told():
    assert "not estimated: device: got 'cuda:7'" in estimate_time(make_config(device="cuda:7"))


def test_alignment_is_counted_where_there_is_any():
    slca, finetune = (estimate_time(make_config(model_name=method, dataset=SYNTHETIC)) for method in ("slca", "finetune"))
    assert re.search(r"alignment [\d.]+ s of it", slca)
    assert "alignment" not in finetune


def test_alignment_costs_more_with_every_task_and_nothing_in_the_first():
    config = resolve_config(make_config(dataset="cifar100_224", init_cls=10, increment=10))
    learner = shape_learner(config, DataManager.plan(config, 0))
    learner.config = config.model_copy(update={"ca_samples": 64, "ca_epochs": 1})
    seconds = _alignment_seconds(learner, 3000, torch.device("cpu"))
    assert seconds[0] == 0 and len(seconds) == 10
    assert all(later > 0 for later in seconds[1:]) and seconds[-1] > seconds[1]


PLANNED = {  # images per epoch of the second task: 60 new ones, 20 stored ones of 2 classes, batches of 10
    "slca": 60, "ncm": 0, "replay": 80, "gdumb": 20, "derpp": 180, "gem": 60 + 6 * 20}


@pytest.mark.parametrize("method", PLANNED)
def test_replayed_images_are_counted(method):
    config = tiny_run(method)
    learner = shape_learner(config, DataManager.plan(config, 0))
    assert learner.planned_images(1, 60) == PLANNED[method]


def test_images_of_a_file_that_is_there_are_counted_and_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arrays = {"x_train": np.zeros((40, 16, 16, 3), np.uint8), "y_train": np.arange(40) % 4, "x_test": np.zeros((8, 16, 16, 3), np.uint8),
              "y_test": np.arange(8) % 4}
    np.savez("mine.npz", **arrays)
    config = make_config(dataset={"name": "mine", "layout": "npz", "root": "mine.npz"})
    assert "measured on" in estimate_time(config)
    assert "40 training images" in describe_run(config)


def test_a_described_data_set_that_is_missing_is_told_by_its_own_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = make_config(dataset={"name": "mine", "layout": "folders", "root": "photos", "num_classes": 4})
    assert re.search(r"number of images is not known \(.*photos", estimate_time(config))
