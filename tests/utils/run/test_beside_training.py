"""Checkpoints that a thread writes while the run goes on: what is there when the run is killed, stopped, or done."""

import os
import signal
import threading
import time

import pytest

import trainer
from tests.processes import start_main, wait_for, write_config
from tests.run_files import assert_same_run, only_run, tiny_config
from tests.utils.run.test_resume import no_pictures  # noqa: F401 (a fixture)
from trainer import train
from utils.errors import StorageError
from utils.run import checkpoint
from utils.run.checkpoint import write_tensors

SLOW_DISK = """
import time
from utils.run import checkpoint
quick = checkpoint.write_tensors
def slow(path, tensors):
    time.sleep(0.3)
    return quick(path, tensors)
checkpoint.write_tensors = slow
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "write_report", lambda result, folder: None)
        train(tiny_config(), folder, name="tiny")
    return only_run(folder / "tiny")


def writing_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "checkpoints"]


@pytest.mark.parametrize(("written", "number", "code"), [
    ("task_01_epoch_*", signal.SIGKILL, -9), ("task_01_epoch_*", signal.SIGTERM, 143), ("task_02", signal.SIGKILL, -9),
    ("task_02", signal.SIGINT, 130)])
def test_a_run_that_ends_while_a_checkpoint_is_written_goes_on_bit_for_bit(written, number, code, whole, tmp_path):
    config, output, plugin = write_config(tiny_config(), tmp_path / "tiny.json"), tmp_path / "output.txt", tmp_path / "slow_disk.py"
    plugin.write_text(SLOW_DISK)
    arguments = ["--config", str(config), "--out", str(tmp_path / "out")]
    process = start_main([*arguments, "--plugin", str(plugin)], output)
    wait_for(lambda: any((tmp_path / "out").rglob(f".{written}.partial")) or process.exitcode is not None)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == code, output.read_text()
    run = only_run(tmp_path / "out" / "tiny")
    assert not (run / "results.json").exists()
    if number != signal.SIGKILL:
        assert not list(run.rglob("*.partial"))
        assert list(run.rglob(f"{written}/checkpoint.json")), "what was being written is finished"
    process = start_main([*arguments, "--resume"], output)
    process.join()
    assert process.exitcode == 0, output.read_text()
    assert_same_run(whole, run)


def test_epochs_go_on_while_a_checkpoint_is_written(whole, tmp_path, monkeypatch):
    all_epochs_done, epochs = threading.Event(), []
    real = trainer.Session.save_inside_task

    def save_inside_task(self, done, optimizer):
        real(self, done, optimizer)
        epochs.append(done)
        if done == 2:  # the last that is followed by another epoch
            all_epochs_done.set()

    def wait_and_write(path, tensors):
        assert all_epochs_done.wait(20), "the training waited for its checkpoint"
        return write_tensors(path, tensors)

    monkeypatch.setattr(trainer.Session, "save_inside_task", save_inside_task)
    monkeypatch.setattr(checkpoint, "write_tensors", wait_and_write)
    train(tiny_config(), tmp_path, name="tiny")
    assert epochs[:2] == [1, 2]
    assert_same_run(whole, only_run(tmp_path / "tiny"))


def test_a_seed_is_in_results_only_after_its_last_checkpoint_is_there_and_no_thread_stays(tmp_path, monkeypatch):
    def slow(path, tensors):
        time.sleep(0.1)
        return write_tensors(path, tensors)

    seen = []

    def write(result, folder):
        seed = result.seeds[-1].seed
        seen.append((seed, (folder / f"seed{seed}" / "checkpoints" / "task_03").is_dir(), writing_threads()))

    monkeypatch.setattr(checkpoint, "write_tensors", slow)
    monkeypatch.setattr(trainer, "_write", write)
    train(tiny_config(epochs=1, seed=[1, 2]), tmp_path, name="tiny")
    assert seen == [(1, True, []), (2, True, [])]


def test_a_disk_that_fills_while_the_last_checkpoint_is_written_ends_the_run_before_its_results(tmp_path, monkeypatch):
    def full_at_last(path, tensors):
        if "task_03" in str(path):
            raise OSError(28, "No space left on device")
        return write_tensors(path, tensors)

    monkeypatch.setattr(checkpoint, "write_tensors", full_at_last)
    with pytest.raises(StorageError, match=r"task_03 cannot be written: No space left on device; earlier checkpoints are intact"):
        train(tiny_config(epochs=1, seed=[1, 2]), tmp_path, name="tiny")
    run = only_run(tmp_path / "tiny")
    assert not (run / "results.json").exists() and not (run / "seed2").exists()
    assert not writing_threads() and not list(run.rglob("*.partial"))
