"""utils/run/background.py: the newest job is done, errors come back, and no thread stays."""

import threading

import pytest
import torch

from utils.run.background import NewestJob, host_copies


class Jobs:
    """Jobs that note their name, each as soon as `go` is set."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.begun, self.go = threading.Event(), threading.Event()

    def job(self, name: str, error: BaseException | None = None):
        def work() -> None:
            self.begun.set()
            assert self.go.wait(10)
            if error is not None:
                raise error
            self.done.append(name)
        return work


@pytest.fixture
def busy():
    """A writer that is in the middle of its first job, and the jobs."""
    jobs, writer = Jobs(), NewestJob()
    writer.put(jobs.job("first"))
    assert jobs.begun.wait(10)
    yield writer, jobs
    jobs.go.set()
    writer.settle()


def test_of_the_jobs_that_wait_the_newest_is_done(busy):
    writer, jobs = busy
    for name in ("second", "third", "fourth"):
        writer.put(jobs.job(name))
    jobs.go.set()
    writer.wait()
    assert jobs.done == ["first", "fourth"]


def test_a_job_that_must_be_done_is_not_replaced(busy):
    writer, jobs = busy
    for name, replaceable in (("second", True), ("task", False), ("inside", True), ("further inside", True)):
        writer.put(jobs.job(name), replaceable)
    jobs.go.set()
    writer.wait()
    assert jobs.done == ["first", "task", "further inside"]


@pytest.mark.parametrize("later", ["put", "wait"])
def test_what_a_job_raised_is_raised_once_where_the_next_one_is_handed_over_or_waited_for(later):
    jobs, writer = Jobs(), NewestJob()
    jobs.go.set()
    writer.put(jobs.job("bad", OSError("full")))
    while writer._thread is not None and writer._thread.is_alive():
        pass
    with pytest.raises(OSError, match="full"):
        writer.put(jobs.job("next")) if later == "put" else writer.wait()
    writer.put(jobs.job("after"))
    writer.wait()
    assert jobs.done == ["after"]


def test_no_thread_is_left_after_waiting(busy):
    writer, jobs = busy
    jobs.go.set()
    writer.wait()
    assert "checkpoints" not in [thread.name for thread in threading.enumerate()]


def test_a_stop_while_an_error_is_settled_drops_what_waits_but_not_what_is_being_done(busy, monkeypatch):
    writer, jobs = busy
    writer.put(jobs.job("waiting"))
    real, calls = writer.wait, []

    def wait() -> None:
        calls.append(None)
        if len(calls) == 1:
            raise KeyboardInterrupt
        jobs.go.set()
        real()

    monkeypatch.setattr(writer, "wait", wait)
    assert isinstance(writer.settle(), KeyboardInterrupt)
    assert jobs.done == ["first"]


def test_a_job_is_done_at_once_where_the_system_gives_no_threads(monkeypatch):
    def refuse(self) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    jobs, writer = Jobs(), NewestJob()
    jobs.go.set()
    writer.put(jobs.job("first"))
    assert jobs.done == ["first"]


def test_a_job_whose_thread_never_came_to_be_is_done_by_the_wait(monkeypatch):
    def stopped(self) -> None:
        raise KeyboardInterrupt

    jobs, writer = Jobs(), NewestJob()
    jobs.go.set()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", stopped)
        with pytest.raises(KeyboardInterrupt):
            writer.put(jobs.job("first"))
    writer.wait()
    assert jobs.done == ["first"]


def test_host_copies_stay_as_they_were_and_take_no_more_than_their_values():
    whole = torch.arange(12.0).view(3, 4)
    tensors = {"whole": whole, "row": whole[1], "turned": whole.T, "number": torch.tensor(3), "spread": torch.ones(1, 1).expand(2, 3)}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    copies = host_copies({**tensors, "trained": torch.nn.Parameter(whole)})
    whole.zero_()
    for name, tensor in before.items():
        assert torch.equal(copies[name], tensor) and copies[name].is_contiguous()
        assert copies[name].untyped_storage().nbytes() == tensor.nelement() * tensor.element_size()
    assert not copies["trained"].requires_grad
