"""metrics.jsonl: read while it grows, and whatever became of some of its lines."""

import json
import logging
import shutil

import pytest

from tests.run_files import assert_same_run, only_run, tiny_config
from tests.utils.run.test_resume import Stopped, no_pictures, stop_after_saves  # noqa: F401 (a fixture)
from trainer import train
from utils.errors import StorageError
from utils.run.metrics_file import read_metrics
from utils.run.monitor import RunMonitor

LINES = [{"kind": "epoch", "task": 1, "epoch": 1}, {"kind": "alignment", "task": 1, "epoch": 1}, {"kind": "task", "task": 1}]
DAMAGES = {
    "half a line": b'{"kind": "epo', "no UTF-8": b'{"kind": "epoch\xff", "task": 1}\n', "zeros": b"\0" * 512 + b"\n",
    "another type": b"[1, 2]\n", "no task": b'{"kind": "epoch", "epoch": 1}\n', "a kind that is a list": b'{"kind": [], "task": 1}\n',
    "a task that is a text": b'{"kind": "task", "task": "1"}\n', "an epoch without its number": b'{"kind": "epoch", "task": 1}\n',
    "nested without end": b"[" * 100_000 + b"\n", "a number without end": b'{"kind": "task", "task": 1' + b"0" * 5000 + b"}\n"}


def monitor(folder, name: str = "slca") -> RunMonitor:
    return RunMonitor(folder, logging.getLogger(name), num_tasks=3)


def test_a_line_is_seen_as_soon_as_it_is_written(tmp_path):
    written = monitor(tmp_path)
    for count, line in enumerate(LINES, start=1):
        written.write(line)
        assert read_metrics(tmp_path / "metrics.jsonl") == LINES[:count]


def test_tasks_count_from_1_and_rates_have_their_groups_names(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="slca")
    written = monitor(tmp_path)
    written.bar([], "")
    written.end_epoch(0, 0, 2, [1.0], 50.0, [{"name": "backbone", "lr": 1e-4}, {"name": "head", "lr": 0.01}])
    (line,) = read_metrics(tmp_path / "metrics.jsonl")
    assert (line["task"], line["epoch"], line["lr"]) == (1, 1, {"backbone": 1e-4, "head": 0.01})
    assert "task 1/3  epoch 1/2" in caplog.text and "lr backbone 0.0001, head 0.01" in caplog.text


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_line_is_passed_over_and_told_once(damage, tmp_path):
    told: list[str] = []
    good = [f"{json.dumps(line)}\n".encode() for line in LINES]
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(good[0] + DAMAGES[damage].removesuffix(b"\n") + b"\n" + b"".join(good[1:]) + DAMAGES[damage])
    assert read_metrics(file, told.append) == LINES
    assert told == [f"{file}: 2 lines are (the first is line 2) damaged or half written, and passed over"]


def test_no_file_is_no_lines_and_a_folder_in_its_place_is_told(tmp_path):
    told: list[str] = []
    assert read_metrics(tmp_path / "metrics.jsonl", told.append) == [] and told == []
    assert read_metrics(tmp_path, told.append) == [] and "cannot be read further" in told[0]


@pytest.fixture(scope="module")
def stopped_and_whole(tmp_path_factory):
    """(folder with a run that stopped after its second task, whole run)."""
    folder = tmp_path_factory.mktemp("metrics")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.write_report", lambda result, folder: None)
        train(tiny_config(epochs=1), folder / "whole", name="run")
        stop_after_saves(patch, 2)
        with pytest.raises(Stopped):
            train(tiny_config(epochs=1), folder / "stopped", name="run")
    return folder / "stopped", only_run(folder / "whole" / "run")


@pytest.mark.parametrize("damage", ["half a line", "no UTF-8", "another type", "no task"])
def test_a_run_resumes_past_a_damaged_line_of_its_metrics(damage, stopped_and_whole, tmp_path, caplog):
    stopped, whole = stopped_and_whole
    shutil.copytree(stopped, tmp_path / "out")
    run = only_run(tmp_path / "out" / "run")
    with (run / "seed1993" / "metrics.jsonl").open("ab") as stream:
        stream.write(DAMAGES[damage])
    with caplog.at_level(logging.WARNING, logger="slca"):
        train(tiny_config(epochs=1), tmp_path / "out", name="run", resume=True)
    assert caplog.text.count("damaged or half written, and passed over") == 1
    assert_same_run(whole, run)


@pytest.mark.parametrize("what", ["metrics.jsonl", "log.txt"])
def test_what_cannot_be_written_ends_the_run_in_one_sentence_not_the_seed(what, tmp_path, monkeypatch):
    real = RunMonitor.__init__

    def planted(self, folder, *rest, **more):
        real(self, folder, *rest, **more)
        (folder / what).mkdir(parents=True)

    monkeypatch.setattr(RunMonitor, "__init__", planted)
    with pytest.raises(StorageError, match=rf"seed1.{what} cannot be written: Is a directory; .*--resume"):
        train(tiny_config(epochs=1, seed=[1, 2]), tmp_path, name="run")
    assert not (only_run(tmp_path / "run") / "seed2").exists()


def test_a_folder_that_is_gone_is_told(tmp_path):
    with pytest.raises(StorageError, match=r"gone was moved or removed while the run wrote there"):
        monitor(tmp_path / "gone").write(LINES[0])
