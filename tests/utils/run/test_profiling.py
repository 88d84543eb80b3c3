"""--profile: traces and a table beside an ordinary run."""

import json
import logging
import os

import pytest
import torch
from torch.profiler import ProfilerActivity

from tests.support import make_config
from trainer import train
from utils.errors import StorageError
from utils.run import profiling
from utils.run.profiling import ProfilingMonitor

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


class NoDriver:
    """A trace that ends in what torch raises without a driver."""

    def __init__(self, activities) -> None:
        pass

    def __enter__(self) -> None:
        raise RuntimeError("Found no NVIDIA driver on your system")

    def __exit__(self, *_: object) -> None:
        raise AssertionError


@pytest.mark.parametrize("missing", ["CUPTI", "driver"])
def test_where_torch_has_cuda_that_cannot_be_traced_the_cpu_is_and_that_is_told_once(missing, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monitor = ProfilingMonitor(tmp_path, logging.getLogger("slca"), num_tasks=1)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, logger="slca"):
        if missing == "driver":
            patch.setattr(profiling, "supported_activities", lambda: {ProfilerActivity.CPU, ProfilerActivity.CUDA})
            patch.setattr(profiling, "profile", NoDriver)
        assert monitor.activities == [ProfilerActivity.CPU]
    with monitor.stage("statistics"):
        torch.ones(3) @ torch.ones(3)
    with monitor.stage("evaluation"):
        torch.ones(3) @ torch.ones(3)
    assert [missing in record.message for record in caplog.records] == [True]
    table = (tmp_path / "profile" / "stages.txt").read_text()
    assert "aten::dot" in table and "CUDA" not in table
    assert sorted(file.name for file in (tmp_path / "profile").iterdir()) == ["evaluation.json", "stages.txt", "statistics.json"]


def test_a_trace_or_table_that_cannot_take_its_name_leaves_the_one_before_and_nothing_half(tmp_path, monkeypatch):
    monitor = ProfilingMonitor(tmp_path, logging.getLogger("slca"), num_tasks=1)
    with monitor.stage("statistics"):
        pass
    before = {file.name: file.read_bytes() for file in (tmp_path / "profile").iterdir()}

    def full(*names: object) -> None:
        raise OSError(28, "No space left on device")

    monitor.tables.clear()
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match=r"statistics.json cannot be written: No space left on device"), monitor.stage("statistics"):
        pass
    with pytest.raises(StorageError, match=r"stages.txt cannot be written: No space left on device"):
        monitor._write_table()
    assert {file.name: file.read_bytes() for file in (tmp_path / "profile").iterdir()} == before
