"""TensorBoard and wandb: what they hold is metrics.jsonl, also after a run was stopped and resumed; and what is told when they fail."""

from __future__ import annotations

import builtins
import errno
import json
import struct
import sys
from pathlib import Path

import pytest
import torch

from main import main
from tests.run_files import metrics, only_run, results, tensors, tiny_config
from trainer import train
from utils.errors import UserError
from utils.files import links_that_leave
from utils.run.events import Events
from utils.run.metrics_file import read_metrics
from utils.trackers.open import open_trackers
from utils.trackers.records import RECORDS, Steps, named_numbers

PACKAGES = {"tensorboard": True, "wandb": "offline"}


class Stopped(BaseException):
    """As if the process were killed."""


def stop_in_task_2(event):
    """Also: whenever a run is killed, its folder is one that may be resumed."""
    if event["kind"] == "epoch" and (event["task"], event["epoch"]) == (2, 2):
        assert links_that_leave(Path(event["run"])) == []
        raise Stopped


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    """A run without trackers, and one with both that was stopped inside its second task and resumed."""
    for package in PACKAGES:
        pytest.importorskip(package)
    out = tmp_path_factory.mktemp("logs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.write_report", lambda result, folder: None)  # pictures take most of a tiny run's time
        train(tiny_config(), out, name="plain")
        with pytest.raises(Stopped):
            train(tiny_config(**PACKAGES), out, name="tracked", on_event=stop_in_task_2)
        train(tiny_config(**PACKAGES), out, name="tracked", resume=True)
    return only_run(out / "plain"), only_run(out / "tracked")


def written(run: Path) -> list[dict]:
    return read_metrics(run / "seed1993" / "metrics.jsonl")


def curves(records: list[dict]) -> dict[str, list[tuple[int, float]]]:
    """Name -> (step, number), as the trackers should have them."""
    steps, found = Steps(), {}
    for record in records:
        step = steps.of(record)
        for name, number in named_numbers(record).items():
            found.setdefault(name, []).append((step, pytest.approx(number, rel=1e-6)))
    return found


def test_a_tracked_run_is_the_same_run(runs):
    plain, tracked = runs
    found = [results(run) for run in runs]
    for setting, value in PACKAGES.items():
        assert found[1]["config"].pop(setting) == value and not found[0]["config"].pop(setting)
    assert found[0] == found[1] and metrics(plain) == metrics(tracked)
    kept = [tensors(run) for run in runs]
    assert kept[0].keys() == kept[1].keys() and all(torch.equal(tensor, kept[1][name]) for name, tensor in kept[0].items())


def test_tensorboards_own_reader_finds_every_number_once(runs):
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    log = EventAccumulator(str(runs[1] / "seed1993" / "tensorboard"), size_guidance={SCALARS: 0}).Reload()
    found = {name: [(event.step, event.value) for event in log.Scalars(name)] for name in log.Tags()["scalars"]}
    assert found == curves(written(runs[1])) and {"epoch/loss", "epoch/lr/head", "task/per_task/3", "alignment/loss"} <= set(found)
    text = log.Tensors("config/text_summary")[0].tensor_proto.string_val[0]
    assert b'"ca_epochs": 2' in text


def test_wandb_goes_on_in_the_same_run_and_each_line_has_its_number(runs):
    folder = runs[1] / "seed1993" / "wandb"
    (run_id,) = {file.stem.removeprefix("run-") for file in folder.glob("offline-run-*/*.wandb")}
    assert (folder / "run_id.txt").read_text() == run_id
    before, after = (history(file) for file in sorted(folder.glob("offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime_ns))
    records = written(runs[1])
    assert sorted({*before, *after}) == list(range(1, len(records) + 1)) and min(after) > 1
    steps = Steps()
    for number, record in enumerate(records, start=1):
        wanted = {**named_numbers(record), f"{record['kind']}/step": steps.of(record)}
        held = after.get(number) or before[number]
        assert {name: held[name] for name in wanted if not name.endswith("seconds")} == {
            name: pytest.approx(value) for name, value in wanted.items() if not name.endswith("seconds")}


def history(file: Path) -> dict[int, dict[str, float]]:
    """Step -> numbers of an offline run's file: wandb's protobuf messages in LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    found, part, data = {}, b"", file.read_bytes()
    at = 7  # the file's own header
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:  # the end of a block, too short for a record
            at += 2**15 - at % 2**15
            continue
        _, length, kind = struct.unpack("<IHB", data[at:at + 7])
        part, at = part + data[at + 7:at + 7 + length], at + 7 + length
        if kind in (1, 4):  # whole, or the last part
            record, part = Record.FromString(part), b""
            if record.HasField("history"):
                items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
                found[record.history.step.num] = items
    return found


def test_numbers_are_named_by_where_they_stand_and_what_is_none_has_no_name():
    record = {"kind": "task", "run": "r", "seed": 7, "task": 2, "top1": 50.0, "top5": None, "per_task": [40.0, 60.0],
              "memory_bytes": {"heads": 8}}
    assert named_numbers(record) == {"task/task": 2.0, "task/top1": 50.0, "task/per_task/1": 40.0, "task/per_task/2": 60.0,
                                     "task/memory_bytes/heads": 8.0}


@pytest.mark.parametrize(("setting", "package"), [
    ("tensorboard=true", "tensorboard"), ("wandb=offline", "wandb"), ("wandb=online", "wandb")])
def test_a_missing_package_is_one_message_before_anything_is_trained(setting, package, monkeypatch, tmp_path, capsys):
    for name in [name for name in sys.modules if name.startswith(("torch.utils.tensorboard", package))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    assert main(["--config", "exps/finetune_demo.json", "exps/sl_demo.json", "--set", setting, "--out", str(tmp_path / "logs")]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and "pip install" in told[0] and package in told[0] and not (tmp_path / "logs").exists()


def test_wandb_online_without_a_key_asks_nothing_and_says_what_to_do(monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("a question was asked"))
    with pytest.raises(UserError, match=r'"wandb": "online" needs a key.*WANDB_API_KEY'):
        open_trackers(tiny_config(wandb="online"))


@pytest.mark.parametrize("value", ["cloud", True, 1, ""])
def test_another_mode_of_wandb_is_refused_with_what_is_allowed(value):
    with pytest.raises(UserError, match=r"wandb.*offline.*online"):
        tiny_config(wandb=value)


def test_a_full_disk_in_the_middle_is_told_once_and_the_file_is_whole_up_to_there(monkeypatch, tmp_path, caplog):
    pytest.importorskip("tensorboard")
    from utils.trackers.tensorboard import EventFile

    events = Events(open_trackers(tiny_config(tensorboard=True)), run=str(tmp_path)).of(seed=1)
    events.tell("run_start", config={})
    events.tell("seed_start", folder=str(tmp_path))
    events.tell("epoch", task=1, epoch=1, loss=0.5)
    monkeypatch.setattr(EventFile, "_write", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    for epoch in (2, 3):
        events.tell("epoch", task=1, epoch=epoch, loss=0.4)
    events.tell("seed_end", finished=True)
    assert caplog.text.count("TensorBoard failed at the event 'epoch'") == 1 and len(caplog.records) == 1

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    assert [event.value for event in EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("epoch/loss")] == [0.5]


def test_every_kind_of_line_that_a_run_writes_is_known_to_the_trackers(runs):
    assert {record["kind"] for record in written(runs[1])} == set(RECORDS)
