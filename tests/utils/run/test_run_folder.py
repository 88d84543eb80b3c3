"""Which run is the newest, and that a run writes into its own folder alone."""

import json
import os
import shutil

import pytest

from tests.result_samples import make_result
from tests.run_files import tiny_config
from utils.errors import StorageError, UserError
from utils.report.compare import find_results
from utils.report.results import write_results
from utils.run import run_folder
from utils.run.locks import folder_lock
from utils.run.run_folder import RunFolder
from utils.run.runs import read_status, runs_in

CONFIG = tiny_config()


class Clock:
    """datetime.now() of a computer whose clock somebody sets."""

    def __init__(self, year: int) -> None:
        self.year = year

    def now(self):
        import datetime
        return datetime.datetime(self.year, 1, 2, 3, 4, 5)


def opened(out, year, monkeypatch, **settings) -> RunFolder:
    monkeypatch.setattr(run_folder, "datetime", Clock(year))
    return RunFolder.open(out, "run", tiny_config(**settings), resume=False)


def test_the_run_made_last_is_the_newest_whatever_the_clock_said(tmp_path, monkeypatch):
    made = [opened(tmp_path, year, monkeypatch) for year in (2026, 2030, 2001, 2001)]
    assert [run.path for run in RunFolder.all(tmp_path / "run")] == [run.path for run in made]
    for newest in (RunFolder.newest(tmp_path / "run"), RunFolder.newest(tmp_path / "run", CONFIG),
                   RunFolder.open(tmp_path, "run", CONFIG, resume=True)):
        assert newest.path == made[-1].path
    for run in made[:3]:
        write_results(make_result(), run.path)
    assert find_results(tmp_path / "run").parent == made[2].path


def test_a_run_that_was_removed_leaves_its_number_to_nobody_newer(tmp_path, monkeypatch):
    first, second = (opened(tmp_path, year, monkeypatch) for year in (2026, 2025))
    shutil.rmtree(first.path)
    assert opened(tmp_path, 2024, monkeypatch).path == RunFolder.newest(tmp_path / "run").path
    assert runs_in(tmp_path / "run")[0] == second.path


def test_runs_from_before_they_were_counted_go_by_name_and_are_older(tmp_path, monkeypatch):
    for name in ("2031-01-01_00-00-00", "2030-01-01_00-00-00"):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / "run.json").write_text("{}")
    new = opened(tmp_path, 2026, monkeypatch)
    assert [run.name for run in runs_in(tmp_path / "run")] == ["2030-01-01_00-00-00", "2031-01-01_00-00-00", new.path.name]


@pytest.mark.parametrize("text", ["", "[" * 100_000, '{"config":' * 50_000, "[]", '{"config": null}', "\x00", "nan", '"x"'])
def test_a_damaged_run_json_is_one_message(text, tmp_path, monkeypatch):
    run = opened(tmp_path, 2026, monkeypatch)
    (run.path / "run.json").write_text(text)
    assert read_status(run.path) == {} and not run.finished
    for use in (lambda: RunFolder.newest(tmp_path / "run", CONFIG), lambda: RunFolder.open(tmp_path, "run", CONFIG, resume=True)):
        with pytest.raises(UserError, match=r"run\.json is damaged"):
            use()


def test_run_json_says_when_and_how_the_run_was_started(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/main.py", "--config", "a b.json"])
    status = opened(tmp_path, 2026, monkeypatch).status()
    assert status["command"] == "python main.py --config 'a b.json'" and status["started"].startswith("2026-01-02T03:04:05")
    monkeypatch.setattr("sys.argv", ["/usr/lib/ipykernel_launcher.py", "-f", "kernel.json"])
    assert opened(tmp_path, 2026, monkeypatch).status()["command"] is None


def test_names_that_are_not_utf8_do_not_change_a_run(tmp_path, monkeypatch):
    dataset = {"name": "d", "layout": "folders", "root": os.fsdecode(b"caf\xe9")}
    run = opened(tmp_path, 2026, monkeypatch, dataset=dataset)
    assert run.changed_keys(tiny_config(dataset=dataset)) == []
    json.loads((run.path / "run.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("planted", [
    ".lock", "seed1993/log.txt", "seed1993/checkpoints", "seed1993/metrics.jsonl", "results.json", "seed7"])
def test_a_link_that_leads_out_of_the_run_is_refused_and_nothing_is_written_there(planted, tmp_path, monkeypatch):
    run = opened(tmp_path, 2026, monkeypatch)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    link = run.path / planted
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(foreign / "new" if "." in planted else foreign)
    with pytest.raises(UserError, match=r"is a link to .*outside of the run's folder"), run.lock():
        pass
    assert list(foreign.iterdir()) == []


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "foreign")
    with pytest.raises(UserError, match="it is a link"), folder_lock(tmp_path / "run"):
        pass
    assert not (tmp_path / "foreign").exists()


def test_a_lock_that_cannot_be_opened_is_one_message(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(UserError, match=r"cannot be opened to lock"), folder_lock(tmp_path):
        pass


def test_a_run_whose_own_folder_is_reached_by_a_link_is_locked_and_written(tmp_path, monkeypatch):
    run = opened(tmp_path / "disk", 2026, monkeypatch)
    (tmp_path / "logs").symlink_to(tmp_path / "disk")
    (run.path / "seed1").mkdir()
    (run.path / "newest").symlink_to("seed1")
    with RunFolder(tmp_path / "logs" / "run" / run.path.name).lock():
        pass


def test_half_written_files_of_a_killed_process_are_gone_when_the_folder_is_locked(tmp_path):
    run = RunFolder.open(tmp_path, "run", CONFIG, resume=False)
    seed = run.path / "seed1993"
    seed.mkdir()
    left, kept = [seed / ".tmpV8K39s", run.path / ".results.json.7.tmp"], seed / "log.txt"  # the first as safetensors names it
    for file in (*left, kept):
        file.touch()
    with run.lock():
        assert not any(file.exists() for file in left) and kept.exists()


def test_a_run_json_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    def refused(path, text):
        raise PermissionError(13, "Permission denied", str(path))

    run = RunFolder.open(tmp_path, "run", CONFIG, resume=False)
    monkeypatch.setattr(run_folder, "write_atomic", refused)
    with pytest.raises(StorageError, match=r"run.json cannot be written: Permission denied; .*continue with --resume"):
        run.finish()
