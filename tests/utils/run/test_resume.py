"""A run that was interrupted, at any checkpoint, ends as one that was not: bit for bit."""

import json
import time
from types import SimpleNamespace

import pytest

import trainer
from models import session
from models.tools import build
from tests.run_files import assert_same_run, metrics, only_run, results, tiny_config
from trainer import test as evaluate_run
from trainer import train
from utils.errors import RunFailed, UserError
from utils.run.checkpoint import CheckpointStore
from utils.run.monitor import RunMonitor
from utils.run.run_folder import RunFolder


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Pictures take most of a tiny run's time and play no part here."""
    monkeypatch.setattr(trainer, "write_report", lambda result, folder: None)


class Stopped(BaseException):
    """Stands for the machine going down."""


def stop_after_saves(monkeypatch, count: int) -> None:
    """From the next `count`-th checkpoint on, the process "dies" right after it is written."""
    real, left = CheckpointStore.save, [count]

    def save(self, *args, **kwargs):
        real(self, *args, **kwargs)
        left[0] -= 1
        if left[0] <= 0:
            raise Stopped

    monkeypatch.setattr(CheckpointStore, "save", save)


def run_stopping_at_every_checkpoint(config, out, monkeypatch, every: int = 1, parent=None) -> int:
    """Start, stop after `every` checkpoints, resume, ... until the run is done; returns how often it was stopped."""
    for stops in range(100):
        with monkeypatch.context() as patch:
            stop_after_saves(patch, every)
            try:
                train(config, out, name="run", resume=True, parent=parent)
                return stops
            except Stopped:
                continue
    raise AssertionError("the run never ends")


def test_same_config_twice_gives_identical_results(tmp_path):
    config = tiny_config(seed=[3, 4])
    for out in ("one", "two"):
        train(config, tmp_path / out, name="run")
    one, two = (only_run(tmp_path / out / "run") for out in ("one", "two"))
    assert_same_run(one, two)
    assert results(one)["seeds"][0] != results(one)["seeds"][1], "two seeds must not be the same run"


def test_resume_auto_in_the_config_does_what_the_option_does(tmp_path, monkeypatch):
    config = tiny_config(resume="auto")
    with monkeypatch.context() as patch:
        stop_after_saves(patch, 4)
        with pytest.raises(Stopped):
            train(config, tmp_path, name="run")
    train(config, tmp_path, name="run")
    lines = metrics(only_run(tmp_path / "run"))["seed1993"]
    assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == [1, 2, 3] * 3


def test_seeds_that_are_done_are_not_trained_again(tmp_path, monkeypatch):
    config = tiny_config(seed=[1, 2], epochs=1)
    train(config, tmp_path / "whole", name="run")
    with monkeypatch.context() as patch:
        stop_after_saves(patch, 4)  # three tasks of the first seed, one of the second
        with pytest.raises(Stopped):
            train(config, tmp_path / "stopped", name="run")
    built = []
    real = trainer.Session.__init__

    def build(self, config, seed, *rest, **more):
        built.append(seed)
        real(self, config, seed, *rest, **more)

    monkeypatch.setattr(trainer.Session, "__init__", build)
    train(config, tmp_path / "stopped", name="run", resume=True)
    assert built == [2]
    assert_same_run(only_run(tmp_path / "whole" / "run"), only_run(tmp_path / "stopped" / "run"))


def test_resuming_a_finished_run_computes_nothing(tmp_path, monkeypatch):
    config = tiny_config(epochs=1)
    first = train(config, tmp_path, name="run")
    monkeypatch.setattr(trainer, "Session", None)
    assert train(config, tmp_path, name="run", resume=True) == first
    assert only_run(tmp_path / "run")


def test_checkpoint_every_spares_epochs_and_keeps_one(tmp_path, monkeypatch):
    config = tiny_config(epochs=5, checkpoint_every=2)
    with monkeypatch.context() as patch:
        stop_after_saves(patch, 2)
        with pytest.raises(Stopped):
            train(config, tmp_path, name="run")
    checkpoints = only_run(tmp_path / "run") / "seed1993" / "checkpoints"
    assert [p.name for p in checkpoints.iterdir()] == ["task_01_epoch_0004"]


@pytest.mark.parametrize(("minutes", "epochs"), [(0.0, [1, 2, 3, 4]), (2.0, [2, 4]), (5.0, [])])
def test_checkpoints_inside_a_task_are_written_by_time(minutes, epochs, tmp_path, monkeypatch):
    clock, saved = [0.0], []
    monkeypatch.setattr(session, "time", SimpleNamespace(monotonic=lambda: clock[0], perf_counter=time.perf_counter))
    real_save, real_end = CheckpointStore.save, RunMonitor.end_epoch

    def save(self, task, epoch, **kwargs):
        saved.append((task, epoch))
        real_save(self, task, epoch, **kwargs)

    def end_epoch(self, *args):
        clock[0] += 60  # an epoch takes a minute
        real_end(self, *args)
    monkeypatch.setattr(CheckpointStore, "save", save)
    monkeypatch.setattr(RunMonitor, "end_epoch", end_epoch)
    train(tiny_config(epochs=5, checkpoint_every=None, checkpoint_minutes=minutes), tmp_path, name="run")
    assert [epoch for task, epoch in saved if task == 0 and epoch is not None] == epochs


@pytest.mark.parametrize(("key", "value"), [("lr", 0.02), ("torch_seed", 7), ("epochs", 4), ("seed", 5)])
def test_resuming_with_another_config_is_refused_by_key(key, value, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after_saves(patch, 1)
        with pytest.raises(Stopped):
            train(tiny_config(), tmp_path, name="run")
    with pytest.raises(UserError, match=rf"--resume: .*another config: {key} \(was .*, is {value}\)"):
        train(tiny_config(**{key: value}), tmp_path, name="run", resume=True)
    assert only_run(tmp_path / "run")


def test_resuming_may_change_what_changes_no_result(tmp_path, monkeypatch):
    train(tiny_config(epochs=1), tmp_path / "whole", name="run")
    with monkeypatch.context() as patch:
        stop_after_saves(patch, 1)
        with pytest.raises(Stopped):
            train(tiny_config(epochs=1), tmp_path / "stopped", name="run")
    train(tiny_config(epochs=1, num_workers=1, notes="other", keep_checkpoints="all"), tmp_path / "stopped", name="run", resume=True)
    whole, stopped = (only_run(tmp_path / out / "run") for out in ("whole", "stopped"))
    assert results(whole)["seeds"] == results(stopped)["seeds"]
    assert metrics(whole) == metrics(stopped)


def test_one_seed_that_fails_does_not_lose_the_others(tmp_path, monkeypatch):
    config = tiny_config(seed=[1, 2, 3], epochs=1)
    train(config, tmp_path / "whole", name="run")
    real = trainer.Session.run

    def fails_for_two(self):
        if self.seed == 2:
            raise ValueError("cosmic ray")
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Session, "run", fails_for_two)
        with pytest.raises(RunFailed, match=r"1 of 3 seeds failed.*seed 2: ValueError: cosmic ray"):
            train(config, tmp_path / "failed", name="run")
    run = only_run(tmp_path / "failed" / "run")
    assert [seed["seed"] for seed in results(run)["seeds"]] == [1, 3]
    assert "cosmic ray" in (run / "seed2" / "log.txt").read_text()
    train(config, tmp_path / "failed", name="run", resume=True)
    assert_same_run(only_run(tmp_path / "whole" / "run"), run)


@pytest.mark.parametrize("method", ["slca", "slca_pp"])
def test_test_only_gives_the_figures_that_every_checkpoint_reported(method, tmp_path):
    config = tiny_config(model_name=method, epochs=1, keep_checkpoints="all", seed=[1, 2])
    whole = train(config, tmp_path, name="run")
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    again = evaluate_run(config, tmp_path, name="run")
    for one, other in zip(whole.seeds, again.seeds, strict=True):
        assert (one.top1_curve, one.top5_curve, one.task_il_curve, one.accuracy_matrix, one.grouped) == (
            other.top1_curve, other.top5_curve, other.task_il_curve, other.accuracy_matrix, other.grouped)
    second = evaluate_run(config, tmp_path, name="run", after_task=2)
    assert [s.top1_curve for s in second.seeds] == [s.top1_curve[:2] for s in whole.seeds]
    assert [s.accuracy_matrix[1] for s in second.seeds] == [s.accuracy_matrix[1][:2] for s in whole.seeds]
    assert sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")) == before, "evaluating must write nothing"


def test_test_only_and_predict_pass_over_a_newer_run_that_has_no_checkpoint_yet(tmp_path, monkeypatch):
    config = tiny_config(epochs=1)
    whole = train(config, tmp_path, name="run")
    older = only_run(tmp_path / "run")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(CheckpointStore, "save", lambda *_, **__: (_ for _ in ()).throw(Stopped()))
        train(config, tmp_path, name="run")
    assert len(list((tmp_path / "run").glob("*/run.json"))) == 2
    assert evaluate_run(config, tmp_path, name="run").seeds[0].top1_curve == whole.seeds[0].top1_curve
    assert RunFolder.newest(tmp_path / "run").path == older


def test_test_only_of_another_config_is_refused(tmp_path):
    train(tiny_config(epochs=1), tmp_path, name="run")
    with pytest.raises(UserError, match=r"--test_only: .*another config: lr"):
        evaluate_run(tiny_config(epochs=1, lr=0.5), tmp_path, name="run")


def test_other_base_weights_are_refused_by_their_checksum(tmp_path, monkeypatch):
    config = tiny_config(model_name="slca_pp", epochs=1)
    train(config, tmp_path, name="run")
    real = build.make_backbone

    def other_base(*args, **kwargs):
        backbone = real(*args, **kwargs)
        backbone.model.blocks[0].mlp.fc1.weight.data[0, 0] += 1e-3
        return backbone

    monkeypatch.setattr(build, "make_backbone", other_base)
    with pytest.raises(UserError, match=r"trained on other pre-trained weights .*SHA-256"):
        evaluate_run(config, tmp_path, name="run")


def test_metrics_of_a_half_written_line_are_continued(tmp_path, monkeypatch):
    config = tiny_config(epochs=1)
    with monkeypatch.context() as patch:
        stop_after_saves(patch, 2)
        with pytest.raises(Stopped):
            train(config, tmp_path, name="run")
    file = only_run(tmp_path / "run") / "seed1993" / "metrics.jsonl"
    file.write_text(file.read_text() + '{"kind": "epo')
    train(config, tmp_path, name="run", resume=True)
    assert [json.loads(line)["kind"] for line in file.read_text().splitlines()].count("epoch") == 3


def test_a_checkpoint_of_another_version_is_told(tmp_path, monkeypatch):
    config = tiny_config(epochs=1)
    real = trainer.Session.meta
    monkeypatch.setattr(trainer.Session, "meta", lambda self, weights: {**real(self, weights), "figures": {"figure_of_old": 1}})
    train(config, tmp_path, name="run")
    with pytest.raises(UserError, match="another version of this program wrote these checkpoints"):
        evaluate_run(config, tmp_path, name="run")
