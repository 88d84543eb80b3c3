"""What can go wrong around a run: killed, stopped, disk full, two at once, damaged files, a loss that is no number."""

import json
import logging
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

import trainer
from main import main
from models.base import BaseLearner
from models.slca.alignment import Alignment
from tests.processes import start_main, wait_for, write_config
from tests.run_files import assert_same_run, only_run, results, tiny_config
from tests.utils.run.test_resume import Stopped, no_pictures, stop_after_saves  # noqa: F401 (a fixture)
from trainer import train
from utils.errors import UserError
from utils.run.locks import folder_lock

DEMO = Path("exps/slca_demo.json")


def run_to_end(config: Path, out: Path) -> Path:
    process = start_main(["--config", str(config), "--out", str(out), "--resume"], out.with_suffix(".txt"))
    process.join()
    assert process.exitcode == 0, out.with_suffix(".txt").read_text()[-2000:]
    return only_run(out / config.stem)


def killed_at_random(config: Path, folder: Path, kills: int) -> None:
    """Start, SIGKILL at a random moment, resume, ... `kills` times; every run that gets to its end must be like the whole one."""
    start_main(["list", "methods"], folder / "list.txt").join()  # the server's own start is not part of a run's time
    start = time.monotonic()
    whole = run_to_end(config, folder / "whole")
    longest = (time.monotonic() - start) / 5
    moments, out, done = random.Random(6), folder / "killed0", 0
    while done < kills:
        process = start_main(["--config", str(config), "--out", str(out), "--resume"], out.with_suffix(".txt"))
        process.join(moments.uniform(0, longest))
        if process.exitcode is None:
            process.kill()
            process.join()
            done += 1
        else:  # it came to its end: compare, and go on with a new run
            assert process.exitcode == 0, out.with_suffix(".txt").read_text()[-2000:]
            assert_same_run(whole, only_run(out / config.stem))
            out = folder / f"killed{done}"
    assert_same_run(whole, run_to_end(config, out))


def test_a_run_killed_at_20_random_moments_ends_like_an_uninterrupted_one(tmp_path):
    config = write_config(tiny_config(epochs=2), tmp_path / "tiny.json")
    killed_at_random(config, tmp_path, kills=20)


@pytest.mark.skipif("SLOW_TESTS" not in os.environ, reason="minutes; set SLOW_TESTS=1")
def test_the_demo_killed_at_20_random_moments_ends_like_an_uninterrupted_one(tmp_path):
    demo = {**json.loads(DEMO.read_text()), "seed": 0}
    del demo["$schema"]
    config = tmp_path / "demo.json"
    config.write_text(json.dumps(demo))
    killed_at_random(config, tmp_path, kills=20)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_has_a_checkpoint_and_says_how_to_resume(number, code, tmp_path):
    config, output = write_config(tiny_config(epochs=200), tmp_path / "tiny.json"), tmp_path / "output.txt"
    arguments = ["--config", str(config), "--out", str(tmp_path / "out")]
    process = start_main(arguments, output)
    wait_for(lambda: any((tmp_path / "out").rglob("task_01_epoch_*/checkpoint.json")) or process.exitcode is not None)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == code, output.read_text()
    assert any((tmp_path / "out").rglob("task_01_epoch_*/checkpoint.json"))
    told = [line for line in output.read_text().splitlines() if "--resume" in line]
    assert told == [f"stopped; continue with: python main.py {' '.join(arguments)} --resume"]
    assert "Traceback" not in output.read_text()


def test_a_full_disk_keeps_the_checkpoint_before_and_says_so(tmp_path):
    config = write_config(tiny_config(epochs=2), tmp_path / "tiny.json")
    whole = run_to_end(config, tmp_path / "whole")
    out, output = tmp_path / "out", tmp_path / "output.txt"
    process = start_main(["--config", str(config), "--out", str(out)], output)
    wait_for(lambda: any(out.rglob("task_01/checkpoint.json")) or process.exitcode is not None)
    process.kill()
    process.join()
    def finished() -> list[str]:
        return sorted(p.name for p in out.rglob("task_0?") if p.is_dir())  # a killed pruning is made good by the resumed run

    before = finished()
    process = start_main(["--config", str(config), "--out", str(out), "--resume"], output, file_limit=6000)
    process.join()
    assert process.exitcode == 2
    told = [line for line in output.read_text().splitlines() if line.startswith("error:")]
    assert len(told) == 1 and "File too large" in told[0] and "earlier checkpoints are intact" in told[0], output.read_text()
    assert "Traceback" not in output.read_text()
    assert finished() == before
    assert_same_run(whole, run_to_end(config, out))


def test_a_full_disk_while_results_are_written_is_one_sentence(tmp_path, monkeypatch):
    def full(result, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer, "write_results", full)
    with pytest.raises(UserError, match="No space left on device; checkpoints and results written so far are intact"):
        train(tiny_config(seed=[1, 2]), tmp_path)


def test_a_second_run_in_the_same_folder_is_refused_until_the_first_is_dead(tmp_path):
    config, output = write_config(tiny_config(epochs=500), tmp_path / "tiny.json"), tmp_path / "output.txt"
    arguments = ["--config", str(config), "--out", str(tmp_path / "out"), "--resume"]
    first = start_main(arguments, output)
    wait_for(lambda: any((tmp_path / "out").rglob("task_01_epoch_*/checkpoint.json")) or first.exitcode is not None)
    second = start_main(arguments, tmp_path / "second.txt")
    second.join()
    assert second.exitcode == 2
    assert "is in use by another run" in (tmp_path / "second.txt").read_text()
    first.kill()
    first.join()
    with folder_lock(only_run(tmp_path / "out" / "tiny")):
        pass


def test_a_folder_is_locked_once_within_a_process_too(tmp_path):
    with folder_lock(tmp_path):
        with pytest.raises(UserError, match="in use"), folder_lock(tmp_path):
            pass
        with pytest.raises(UserError, match="in use"), folder_lock(tmp_path):
            pass
    with folder_lock(tmp_path):
        pass


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "bit of the weights flipped": lambda folder: flip_a_bit(folder / "weights.safetensors"),
    "bit of the state flipped": lambda folder: flip_a_bit(folder / "state.safetensors"),
    "bit of the figures flipped": lambda folder: flip_a_bit(folder / "checkpoint.json"),
    "weights cut short": lambda folder: (folder / "weights.safetensors").write_bytes((folder / "weights.safetensors").read_bytes()[:-100]),
    "figures empty": lambda folder: (folder / "checkpoint.json").write_text(""),
    "figures of another kind": lambda folder: (folder / "checkpoint.json").write_text("[1, 2]"),
    "pipe in its place": lambda folder: ((folder / "state.safetensors").unlink(), os.mkfifo(folder / "state.safetensors")),
    "file missing": lambda folder: (folder / "state.safetensors").unlink(),
}


@pytest.fixture(scope="module")
def two_tasks_done(tmp_path_factory):
    """(whole run, folder with a run that stopped after two of three tasks)."""
    folder = tmp_path_factory.mktemp("damage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "write_report", lambda result, folder: None)
        train(tiny_config(epochs=1), folder / "whole", name="run")
        stop_after_saves(patch, 2)
        with pytest.raises(Stopped):
            train(tiny_config(epochs=1), folder / "stopped", name="run")
    return only_run(folder / "whole" / "run"), folder / "stopped"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(damage, two_tasks_done, tmp_path, caplog):
    whole, stopped = two_tasks_done
    shutil.copytree(stopped, tmp_path / "out")
    run = only_run(tmp_path / "out" / "run")
    DAMAGES[damage](run / "seed1993" / "checkpoints" / "task_02")
    with caplog.at_level(logging.WARNING, logger="slca"):
        train(tiny_config(epochs=1), tmp_path / "out", name="run", resume=True)
    assert "task_02 is damaged" in caplog.text and "using the one before it" in caplog.text
    assert_same_run(whole, run)


def test_a_loss_that_is_no_number_stops_with_the_place_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    real = BaseLearner.classification_loss
    calls = []

    def loss(self, logits, targets):
        calls.append(self.task)
        bad = self.task == 1 and calls.count(1) == 6  # 16 images, 8 per step: second step of the third epoch
        return real(self, logits, targets) * (float("nan") if bad else 1.0)

    monkeypatch.setattr(BaseLearner, "classification_loss", loss)
    with pytest.raises(UserError, match=r"loss became nan in task 2, epoch 3, step 2\. Likely settings: lr"):
        train(tiny_config(epochs=4), tmp_path, name="run")
    run = only_run(tmp_path / "run")
    assert sorted(p.name for p in (run / "seed1993" / "checkpoints").iterdir()) == ["task_01", "task_02_epoch_0002"]


def test_a_loss_of_alignment_that_is_no_number_stops_too(tmp_path, monkeypatch):
    real = Alignment.loss
    monkeypatch.setattr(Alignment, "loss", lambda self, features, labels: real(self, features, labels) * float("inf"))
    with pytest.raises(UserError, match=r"loss became inf in the alignment of task 2, epoch 1\. Likely settings: ca_lr"):
        train(tiny_config(), tmp_path, name="run")


def test_one_experiment_that_fails_does_not_stop_the_next(tmp_path, capsys):
    good = write_config(tiny_config(epochs=1), tmp_path / "good.json")
    missing = {"name": "gone", "layout": "npz", "root": str(tmp_path / "gone.npz")}
    bad = write_config(tiny_config(dataset=missing), tmp_path / "bad.json")
    assert main(["--config", str(bad), str(good), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert f"{bad}: npz file {tmp_path / 'gone.npz'} does not exist" in error
    assert "1 of 2 experiments failed" in error
    assert results(only_run(tmp_path / "out" / "good"))["seeds"]
    assert not (tmp_path / "out" / "bad").exists(), "a run that never began leaves no folder"
