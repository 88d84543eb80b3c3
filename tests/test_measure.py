"""The dry run's estimate of time."""

import re

import pytest

from models.measure import estimate_time
from tests.support import make_config

SYNTHETIC = {"name": "tiny", "layout": "synthetic", "num_classes": 4, "image_size": 16, "train_per_class": 30, "test_per_class": 2,
             "train_transform": "none"}


@pytest.mark.parametrize("method", ["slca", "slca_pp", "linear_probe"])
def test_with_data_and_weights_two_batches_are_measured(method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = estimate_time(make_config(model_name=method, dataset=SYNTHETIC, batch_size=10))
    assert "measured on 2 batches of 10 on cpu" in text and "for 2 task(s)" in text
    per_image, without = (float(x) for x in re.findall(r"([\d.]+) ms", text))
    assert per_image > 0 and without > 0
    assert not list(tmp_path.iterdir())  # a dry run writes nothing


def test_without_data_it_is_computed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = estimate_time(make_config(dataset="cifar100_224", init_cls=10, increment=10, epochs=20))
    assert "computed from" in text and "GFLOP per image" in text and "the data are not in data/cifar-100-python" in text
    assert "10 task(s)" in text


def test_a_device_that_is_not_there_is_told():
    assert "not estimated: device: got 'cuda:7'" in estimate_time(make_config(device="cuda:7"))
