"""utils/images/loader.py and workers.py: worker processes that die, run short or hang end the pass in one sentence."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from utils.errors import UserError
from utils.images import workers
from utils.images.loader import BatchMaker, BatchPool
from utils.images.passes import WorkItem
from utils.images.store import ArrayStore
from utils.images.transforms import make_transform
from utils.images.workers import shortage

WAYS_OUT = ("memory", "/dev/shm", "num_workers", "--resume", "ulimit -n")
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)


class Misbehaving(ArrayStore):
    """Does `act` before it gives image 12."""

    def __init__(self, act) -> None:
        super().__init__(PIXELS)
        self.act = act

    def get(self, indices: np.ndarray) -> torch.Tensor:
        if 12 in indices:
            self.act()
        return super().get(indices)


def pool(store: ArrayStore | None = None, num_workers: int = 2) -> BatchPool:
    transforms = [make_transform("none", 8, (0.5,) * 3, (0.5,) * 3) for _ in range(2)]
    return BatchPool(BatchMaker({"train": store or ArrayStore(PIXELS)}, *transforms, finish_here=True), num_workers)


def items(size: int = 2) -> list[WorkItem]:
    return [WorkItem("train", np.arange(i, i + size), np.arange(i, i + size), False, ("x", i), 0, size) for i in range(0, 24, size)]


def told(run: BatchPool, during=None, kind: type[Exception] = UserError) -> str:
    """The message of a pass that must fail; no frame is kept, for it would keep the workers (pytest.raises does)."""
    try:
        for number, _ in enumerate(run.run(items())):
            if during is not None and number == 0:
                during()
    except kind as error:
        return str(error)
    return ""


def pids(run: BatchPool) -> set[int]:
    return {process.pid for process in run._watch.processes}


def all_batches(run: BatchPool) -> torch.Tensor:
    batches = list(run.run(items()))
    assert torch.cat([labels for _, labels in batches]).tolist() == list(range(24))
    return torch.cat([images for images, _ in batches])


def kill(run: BatchPool) -> None:
    os.kill(min(pids(run)), signal.SIGKILL)
    time.sleep(0.2)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS])  # for want of memory, of /dev/shm
def test_a_worker_that_dies_ends_the_pass_with_the_ways_out_and_the_next_pass_has_new_ones(number):
    run = pool()
    expected = all_batches(pool(num_workers=0))
    assert torch.equal(all_batches(run), expected)
    first = pids(run)

    def act() -> None:
        os.kill(os.getpid(), number)
    run.maker.stores["train"] = Misbehaving(act)
    assert torch.equal(all_batches(run), expected), "the workers have the old store"
    kill(run)
    message = told(run)
    assert all(word in message for word in WAYS_OUT) and "killed by SIGKILL" in message
    message = told(run)  # new workers, which have the store that ends them
    assert all(word in message for word in WAYS_OUT) and f"killed by {signal.Signals(number).name}" in message
    run.maker.stores["train"] = ArrayStore(PIXELS)
    assert torch.equal(all_batches(run), expected) and len(pids(run)) == 2 and not pids(run) & first


def test_a_death_is_told_by_the_pass_and_not_in_the_middle_of_other_work():
    run, reached = pool(), []

    def during() -> None:
        kill(run)  # torch's own handler would raise here
        reached.append(True)
    handler = signal.getsignal(signal.SIGCHLD)
    assert "killed by SIGKILL" in told(run, during) and reached and signal.getsignal(signal.SIGCHLD) is handler


def test_no_worker_outlives_a_broken_pool():
    run = pool()
    all_batches(run)
    processes = run._watch.processes
    kill(run)
    assert told(run) and all(process.exitcode is not None for process in processes)


def test_a_worker_that_does_not_answer_is_ended_after_a_limit(monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE", 0.4)
    monkeypatch.setattr(workers, "TICK", 0.1)
    start = time.monotonic()
    message = told(pool(Misbehaving(lambda: time.sleep(1000))))
    assert "no batch came" in message and all(word in message for word in WAYS_OUT) and time.monotonic() - start < 20


@pytest.mark.parametrize("error", [RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"),
                                   OSError(24, "Too many open files"), MemoryError(),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")])
@pytest.mark.parametrize("where", ["read", "send"])
def test_what_runs_short_in_a_worker_is_told_and_waits_for_nothing(monkeypatch, error, where):
    def fail(*_):
        raise error
    if where == "send":
        monkeypatch.setattr(workers, "ForkingPickler", SimpleNamespace(dumps=fail))
    start, message = time.monotonic(), told(pool(Misbehaving(fail) if where == "read" else None))
    assert all(word in message for word in WAYS_OUT) and "Traceback" not in message and time.monotonic() - start < 10


def test_an_image_that_cannot_be_read_for_want_of_descriptors_is_not_called_bad(monkeypatch):
    def fail() -> None:
        try:
            raise OSError(24, "Too many open files")
        except OSError:
            raise UserError("image x cannot be read; remove it") from None
    assert "ulimit -n" in told(pool(Misbehaving(fail)))


def test_a_bug_in_a_worker_stays_an_exception_and_a_bad_image_keeps_the_workers():
    def bug() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert "mat1" in told(pool(Misbehaving(bug)), kind=RuntimeError)
    gc.collect()  # else the next workers inherit that loader

    def bad() -> None:
        raise UserError("image 12 cannot be read")
    run = pool(Misbehaving(bad))
    assert told(run) == "image 12 cannot be read"
    before = pids(run)
    assert told(run) == "image 12 cannot be read" and pids(run) == before


def told_with_descriptors(free: int, answer: Connection) -> None:
    import resource
    limit = len(os.listdir("/proc/self/fd")) + free
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    answer.send(told(pool()) or "all came")


@pytest.mark.skipif(sys.platform != "linux", reason="limits and fork as on Linux")
def test_few_file_descriptors_never_hang_a_pass():
    fork = multiprocessing.get_context("fork")
    for free in (1, 4, 8, 10, 12, 16):
        mine, theirs = fork.Pipe()
        process = fork.Process(target=told_with_descriptors, args=(free, theirs))
        process.start()
        assert mine.poll(60), "far below PATIENCE"
        message = mine.recv()
        assert message == "all came" or all(word in message for word in WAYS_OUT)
        process.join(10)
        assert process.exitcode == 0


def test_shortages_are_found_behind_other_errors():
    assert shortage(MemoryError()) and shortage(OSError(28, "No space left on device")) and not shortage(OSError(2, "No such file"))
    assert not shortage(None) and not shortage(RuntimeError("shape mismatch"))
