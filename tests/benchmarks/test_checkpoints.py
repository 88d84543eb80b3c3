"""benchmarks/checkpoints.py in small: its figures fill their section of the report."""

import importlib
from pathlib import Path

import pytest
import torch


@pytest.fixture
def modules(monkeypatch):
    """The benchmark and the report, which stand beside each other when they are run."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("checkpoints"), importlib.import_module("report")


def test_the_tensors_are_those_of_a_vit_b(modules, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape, device: torch.empty(shape, device="meta"))
    tensors = modules[0].vit_b_tensors(torch.device("cpu"))
    assert sum(tensor.numel() for tensor in tensors.values()) == 85_798_656  # timm's vit_base_patch16_224 without head


def test_both_ways_are_measured_and_shown(modules, monkeypatch):
    benchmark, report = modules
    monkeypatch.setattr(benchmark, "WIDTH", 8)
    figures = benchmark.measure(torch.device("cpu"), rounds=2)
    assert figures["held_up_seconds"].keys() == {"in its way", "beside"} and figures["less"]["rounds"] == 2
    section = report.PARTS["11_checkpoints"](figures)
    assert section.startswith("## 11. Checkpoints") and "| beside |" in section and "2 rounds" in section
