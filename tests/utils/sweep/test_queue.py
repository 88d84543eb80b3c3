"""The loop over jobs, with jobs that are only files."""

import json
import os

import pytest

from utils.errors import RunFailed
from utils.sweep import queue as queue_module
from utils.sweep.places import Place
from utils.sweep.queue import Job, Queue, State, failures_told, last_line


class Pretended(Place):
    """Starts nothing; what the test writes is what a job would have left."""

    def start(self, name, command, folder):
        started.append((name, command))
        return {"id": str(len(started)), "on": "local", "host": "here", "log": str(folder / name)}


started: list = []


@pytest.fixture
def queue(tmp_path, monkeypatch):
    started.clear()
    monkeypatch.setitem(queue_module.LOOK_SECONDS, "local", 0.0)
    monkeypatch.setattr(queue_module, "local_job_lives", lambda record: not (tmp_path / "dead").exists())
    return Queue(tmp_path, Pretended("local", 2))


def jobs_of(folder, count):
    return [Job(f"j{n}", ("--config", f"{n}.json"), folder / "runs" / f"j{n}") for n in range(count)]


def exits(queue, name, code):
    (queue.folder / "jobs" / f"{name}.exit").write_text(f"{code}\n")


def work(queue, jobs, codes):
    """Each look at a running job ends it with its code; returns the states told and how many ran at once."""
    waiting, told, at_once = list(jobs), {}, []

    def watch(job):
        at_once.append(sum(queue.state(other).word == "running" for other in jobs))
        exits(queue, job.name, codes[job.name])
        return False

    queue.work(lambda: waiting.pop(0) if waiting else None, lambda job, state: told.update({job.name: state}), watch)
    return told, max(at_once, default=0)


def test_as_many_jobs_go_at_once_as_there_is_room_for_and_all_end(queue, tmp_path):
    jobs = jobs_of(tmp_path, 5)
    queue.plan(jobs)
    told, at_once = work(queue, jobs, dict.fromkeys([job.name for job in jobs], 0))
    assert {state.word for state in told.values()} == {"done"} and len(told) == 5 and at_once == 2
    assert [command.environment["CUDA_VISIBLE_DEVICES"] for _, command in started] == [""] * 5


def test_a_failed_job_tells_its_last_line_and_is_tried_again_by_the_next_loop(queue, tmp_path):
    (job,) = jobs_of(tmp_path, 1)
    (tmp_path / "submitit").mkdir()
    (tmp_path / "submitit" / "j0.err").write_text("submitit ERROR\nerror: no such file\n\n")
    told, _ = work(queue, [job], {"j0": 2})
    assert told["j0"] == State("failed", "error: no such file")
    failure = failures_told(tmp_path, told, 1)
    assert isinstance(failure, RunFailed) and "j0" in str(failure) and failures_told(tmp_path, {}, 1) is None
    assert work(queue, [job], {"j0": 0})[0]["j0"].word == "done" and len(started) == 2


def test_a_loop_that_was_killed_waits_for_jobs_that_still_run_and_starts_those_that_died(queue, tmp_path):
    jobs = jobs_of(tmp_path, 2)
    for job in jobs:
        queue.start(job, 0)
    work(queue, jobs[:1], {"j0": 0})
    assert len(started) == 2  # j0 was taken over
    (tmp_path / "dead").touch()
    assert queue.state(jobs[1]) == State("failed", "it was killed before it said a word")
    (tmp_path / "dead").unlink()
    assert queue.state(jobs[1]).word == "running"


def test_a_job_beside_one_that_an_earlier_loop_left_gets_another_gpu(tmp_path, monkeypatch):
    started.clear()
    monkeypatch.setitem(queue_module.LOOK_SECONDS, "local", 0.0)
    monkeypatch.setattr(queue_module, "local_job_lives", lambda record: True)
    queue, jobs = Queue(tmp_path, Pretended("local", 2, 1, gpus=("4", "5"))), jobs_of(tmp_path, 2)
    queue.plan(jobs)
    queue.start(jobs[1], 0)
    work(queue, jobs, {"j0": 0, "j1": 0})
    assert [(name, command.environment["CUDA_VISIBLE_DEVICES"]) for name, command in started] == [("j1", "4"), ("j0", "5")]


def test_a_job_is_given_up_after_two_looks_without_a_sign_of_life_one_after_the_other(queue, tmp_path, monkeypatch):
    lives = iter([False, True, False, True])
    monkeypatch.setattr(queue_module, "local_job_lives", lambda record: next(lives))
    (job,), looks, told = jobs_of(tmp_path, 1), [], {}
    waiting = [job]

    def watch(job):
        looks.append(job)
        if len(looks) == 2:
            exits(queue, job.name, 0)
        return False

    queue.work(lambda: waiting.pop() if waiting else None, lambda job, state: told.update({job.name: state.word}), watch)
    assert told == {"j0": "done"}


def test_a_job_that_is_not_worth_going_on_is_pruned(queue, tmp_path, monkeypatch):
    cancelled = []
    monkeypatch.setattr(queue_module, "cancel", lambda record: (cancelled.append(record["id"]), (tmp_path / "dead").touch()))
    (job,), told = jobs_of(tmp_path, 1), {}
    waiting = [job]
    queue.work(lambda: waiting.pop() if waiting else None, lambda job, state: told.update({job.name: state}), lambda job: True)
    assert told["j0"].word == "pruned" and cancelled == ["1"]


def test_a_stop_ends_local_jobs(queue, tmp_path, monkeypatch):
    cancelled = []
    monkeypatch.setattr(queue_module, "cancel", lambda record: (cancelled.append(record["id"]), (tmp_path / "dead").touch()))
    waiting = jobs_of(tmp_path, 2)

    def stop(job):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        queue.work(lambda: waiting.pop() if waiting else None, watch=stop)
    assert cancelled == ["1", "2"]


def test_jobs_of_a_cluster_wait_run_and_are_gone_as_squeue_says(queue, tmp_path):
    (job,) = jobs_of(tmp_path, 1)
    queue.start(job, 0)
    file = tmp_path / "jobs" / "j0.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "on": "slurm"}))
    assert [queue.state(job, in_slurm).word for in_slurm in ({"1": "PENDING"}, {"1": "RUNNING"}, None, {})] == [
        "waiting", "running", "running", "failed"]


def test_the_second_try_of_a_job_resumes(tmp_path):
    job = Job("a", ("--config", "a.json"), tmp_path)
    assert job.command(resumed=False)[2:] == ["--config", "a.json"] and job.command(resumed=True)[2:] == ["--config", "a.json", "--resume"]


def test_the_plan_is_read_back_and_a_damaged_one_is_empty(queue, tmp_path):
    queue.plan(jobs_of(tmp_path, 2))
    assert Queue.read(tmp_path).jobs == queue.jobs
    (tmp_path / "jobs.json").write_text('{"jobs": [{"name": 1}]}')
    assert Queue.read(tmp_path).jobs == []
    (tmp_path / "jobs.json").write_text("[" * 100_000)
    assert Queue.read(tmp_path).jobs == []


@pytest.mark.timeout(10)
def test_pipes_in_place_of_a_sweeps_files_are_not_waited_for(queue, tmp_path):
    (tmp_path / "jobs").mkdir()
    for file in ("jobs.json", "jobs/run.json", "jobs/run.exit", "run.err"):
        os.mkfifo(tmp_path / file)
    assert Queue.read(tmp_path).jobs == [] and queue.record("run") is None and last_line(str(tmp_path / "run")) == ""
    assert queue._exit_code("run") is None


def test_the_last_line_is_what_a_person_would_look_for(tmp_path):
    (tmp_path / "x.out").write_text("seed 1\n\x1b[31mdone\nsubmitit INFO (...)\n")
    assert last_line(str(tmp_path / "x")) == r"\x1b[31mdone" and last_line(str(tmp_path / "y")) == ""
