"""The list of runs."""

import json
import os
import time

import pytest

from utils.errors import UserError
from utils.run.locks import folder_lock
from utils.sweep import status as status_module
from utils.sweep.queue import Job, Queue
from utils.sweep.status import lines_of, status


def a_run(folder, *, finished, tasks=0, left=50.0):
    seed = folder / "2026-01-01_00-00-00" / "seed1"
    seed.mkdir(parents=True)
    (seed.parent / "run.json").write_text(json.dumps({"finished": finished, "config": {"seed": [1, 2]}}))
    (seed / "metrics.jsonl").write_text("".join(
        json.dumps({"kind": "task", "task": n + 1, "tasks": 5, "seconds": {"left": left}}) + "\n" for n in range(tasks)))
    (seed / "log.txt").write_text("10:00  first\n10:01  the last words\n")
    return seed.parent


def shown(folder):
    return {line.name: (line.state, line.progress, line.note) for line in lines_of(folder)}


def test_runs_are_done_running_with_the_time_left_or_stopped_with_their_last_line(tmp_path):
    a_run(tmp_path / "a", finished=True, tasks=10)
    going = a_run(tmp_path / "deep" / "b", finished=False, tasks=3)
    a_run(tmp_path / "c", finished=False)
    earlier = time.time() - 20
    os.utime(going / "seed1" / "metrics.jsonl", (earlier, earlier))
    with folder_lock(going):
        lines = shown(tmp_path)
    name = "2026-01-01_00-00-00"
    assert lines[f"a/{name}"] == ("done", "10 of 10", "") and lines[f"c/{name}"] == ("stopped", "", "10:01  the last words")
    state, progress, note = lines[f"deep/b/{name}"]
    assert (state, progress) == ("running", "3 of 10") and note.startswith("about 3") and note.endswith("s left")


def test_jobs_wait_until_they_are_started_and_their_runs_are_listed_once(tmp_path, capsys):
    sweep = tmp_path / "sweep"
    jobs = [Job(name, (), sweep / "runs" / name) for name in ("a", "b", "c")]
    for job in jobs[:2]:
        a_run(job.experiment, finished=job.name == "a", tasks=2)
        (sweep / "jobs").mkdir(exist_ok=True)
        (sweep / "jobs" / f"{job.name}.json").write_text(json.dumps({"id": "1", "on": "local", "host": "x", "log": str(sweep / job.name)}))
        (sweep / "jobs" / f"{job.name}.exit").write_text("0" if job.name == "a" else "1")
    (sweep / "b.err").write_text("stopped; continue with: x\n")
    Queue(sweep).plan(jobs)
    assert shown(tmp_path)["sweep/runs/b"][0] == "stopped"
    (sweep / "b.err").write_text("error: no room\n")
    assert shown(tmp_path) == {"sweep/runs/a": ("done", "2 of 10", ""), "sweep/runs/b": ("failed", "2 of 10", "error: no room"),
                               "sweep/runs/c": ("waiting", "", "")}
    status(tmp_path)
    assert "1 done, 1 failed, 1 waiting" in capsys.readouterr().out


def test_one_run_may_be_named(tmp_path):
    run = a_run(tmp_path / "a", finished=True, tasks=10)
    assert [line.name for line in lines_of(run)] == ["a"]


def test_a_folder_without_runs_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(status_module, "slurm_states", lambda: {})
    with pytest.raises(UserError, match="no run and no sweep"):
        status(tmp_path)


def test_a_job_that_waits_to_be_resumed_is_listed_once_with_what_it_has_done(tmp_path, monkeypatch):
    monkeypatch.setattr(status_module, "slurm_states", lambda: {"7": "PENDING"})
    job = Job("a", (), tmp_path / "runs" / "a")
    a_run(job.experiment, finished=False, tasks=2)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "a.json").write_text(json.dumps({"id": "7", "on": "slurm", "host": "x", "log": "x"}))
    Queue(tmp_path).plan([job])
    assert shown(tmp_path) == {"runs/a": ("waiting", "2 of 10", "")}
