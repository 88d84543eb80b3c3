"""Devices: what is asked for is there, or the message says the way out."""

import pytest
import torch

from utils.errors import UserError
from utils.machine.device import make_fabric, parse_device


@pytest.mark.parametrize("written", ["cpu", "CPU", ["cpu"], -1, "-1", [-1]])
def test_the_cpu_simply_works(written):
    assert parse_device(written) == ("cpu", 1)


@pytest.mark.parametrize(("written", "numbers"), [("cuda", [0]), ("cuda:1", [1]), ("0,1", [0, 1]),
                                                  (["0", "1"], [0, 1]), (["0"], [0]), (1, [1])])
def test_gpus_are_named_as_the_release_and_torch_do(written, numbers, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert parse_device(written) == ("cuda", numbers)


def test_a_gpu_that_is_not_there_is_told_with_the_way_out(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"GPU 1 is not there: this machine has 1 GPU.*--device cpu"):
        parse_device(["0", "1"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"has 0 GPU.*--device cpu"):
        parse_device("cuda")


@pytest.mark.parametrize("written", ["gpu", "cuda:x", "", ["cpu", "0"], "0,a", []])
def test_an_unknown_device_is_told(written):
    with pytest.raises(UserError, match="device: got"):
        parse_device(written)


def test_half_precision_needs_a_gpu():
    with pytest.raises(UserError, match="precision: got 16-mixed on the CPU"):
        make_fabric("cpu", "16-mixed")


def test_apples_gpus_are_refused_and_never_chosen_by_auto(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert parse_device("auto") == ("cpu", 1)
    with pytest.raises(UserError, match="have no float64"):
        parse_device("mps")
