"""utils/images/passes.py and loader.py: passes inside passes and passes to come, all made by the same workers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch

from utils.errors import UserError
from utils.images.loader import PREFETCHED, BatchMaker, BatchPool
from utils.images.passes import Plan, WorkItem
from utils.images.store import ArrayStore
from utils.images.transforms import make_transform

PIXELS = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), dtype=np.uint8)


class Counting(ArrayStore):
    """Counts the images that are read, in whichever process; image 39 is bad."""

    def __init__(self) -> None:
        super().__init__(PIXELS)
        self.read = multiprocessing.get_context("fork").Value("i", 0)

    def get(self, indices: np.ndarray) -> torch.Tensor:
        if 39 in indices:
            raise UserError("image 39 cannot be read")
        with self.read.get_lock():
            self.read.value += len(indices)
        return super().get(indices)


def pool(num_workers: int = 2) -> BatchPool:
    transforms = [make_transform("none", 4, (0.5,) * 3, (0.5,) * 3) for _ in range(2)]
    return BatchPool(BatchMaker({"train": Counting()}, *transforms, finish_here=True), num_workers)


def items(start: int, stop: int) -> list[WorkItem]:
    return [WorkItem("train", np.array([i]), np.array([i]), False, ("x", i), 0, 1) for i in range(start, stop)]


def images_of(run: BatchPool, start: int, stop: int, then: list[WorkItem] | None = None) -> list[int]:
    """Which images a pass gives, by their pixels."""
    return [round((images.mean().item() * 0.5 + 0.5) * 255) for images, _ in run.run(items(start, stop), then or ())]


def read(run: BatchPool) -> int:
    return run.maker.stores["train"].read.value


def settled(run: BatchPool) -> int:
    """Images read once the workers have nothing left to do."""
    count = -1
    while count != read(run):
        count = read(run)
        time.sleep(0.3)
    return count


def test_a_pass_inside_a_pass_is_made_by_the_workers_and_bounded():
    run, outer = pool(), []
    limit = PREFETCHED * run.num_workers
    for number, (_, labels) in enumerate(run.run(items(0, 20))):
        outer += labels.tolist()
        if number == 0:
            run.maker = None  # this process can make nothing any more; the workers have theirs
        assert images_of(run, 20, 22 + number % 9) == list(range(20, 22 + number % 9))
        assert all(each.coming + len(each.made) <= limit for each in run._plan.open)
    assert outer == list(range(20)) and not run._plan.open


def test_passes_that_take_turns_are_made_by_the_workers():
    run = pool()
    pairs = [(a.item(), b.item()) for (_, a), (_, b) in zip(run.run(items(0, 15)), run.run(items(15, 30)), strict=True)]
    assert pairs == [(i, i + 15) for i in range(15)] and settled(run) == 30


def test_the_pass_to_come_is_begun_ahead_up_to_the_limit_and_nothing_is_made_twice():
    run = pool()
    limit = PREFETCHED * run.num_workers
    assert images_of(run, 0, 10, then=items(10, 20)) == list(range(10))
    assert settled(run) == 10 + limit
    assert images_of(run, 20, 28) == list(range(20, 28)), "another pass in between"
    assert settled(run) == 18 + limit
    assert images_of(run, 10, 20) == list(range(10, 20)) and settled(run) == 28 and run._plan.expected is None


def test_a_pass_that_is_not_the_expected_one_gives_its_own_images():
    run = pool()
    images_of(run, 0, 6, then=items(10, 16))
    assert images_of(run, 10, 15) == list(range(10, 15)) and images_of(run, 11, 17) == list(range(11, 17))


def test_after_a_pass_that_was_left_early_nothing_is_expected():
    run = pool()
    batches = run.run(items(0, 10), items(10, 20))
    next(batches)
    batches.close()
    assert run._plan.expected is None and not run._plan.open
    assert images_of(run, 20, 30) == list(range(20, 30)) and settled(run) <= 10 + 2 * PREFETCHED * run.num_workers


def test_a_bad_image_of_a_pass_to_come_is_told_when_that_pass_asks_for_it():
    run = pool()
    assert images_of(run, 30, 36, then=items(38, 40)) == list(range(30, 36)) and images_of(run, 0, 4) == [0, 1, 2, 3]
    with pytest.raises(UserError, match="image 39 cannot be read"):
        images_of(run, 38, 40)
    assert images_of(run, 0, 4) == [0, 1, 2, 3]


def message_of(batches) -> str:
    """No frame is kept, for it would keep the workers."""
    try:
        list(batches)
    except UserError as error:
        return str(error)
    return ""


def test_workers_that_die_in_an_inner_pass_end_the_outer_one_too_and_what_was_expected():
    run = pool()
    outer = run.run(items(0, 20), items(20, 30))
    next(outer)
    os.kill(run._watch.processes[0].pid, signal.SIGKILL)
    time.sleep(0.2)
    assert "killed by SIGKILL" in message_of(run.run(items(0, 4)))
    assert "another pass" in message_of(outer)
    assert run._plan.expected is None and images_of(run, 20, 30) == list(range(20, 30))


def test_an_interrupt_in_the_middle_of_a_wait_leaves_a_pool_that_works(monkeypatch):
    run = pool()
    batches = run.run(items(0, 20))
    next(batches)
    real, first = run._arriving, run._watch.processes

    class Interrupted:
        def __next__(self):
            next(real)  # the batch is lost
            raise KeyboardInterrupt
    run._arriving = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        list(batches)
    assert all(process.exitcode is not None for process in first) and images_of(run, 0, 20) == list(range(20))


def test_the_plan_takes_the_inner_pass_first_then_the_outer_then_the_expected_and_else_gives_nothing():
    plan = Plan(limit=2)
    outer, walk = plan.begin(items(0, 3), then=items(9, 10)), iter(plan)
    assert next(walk).indices == [0]
    inner = plan.begin(items(5, 6))
    given = [next(walk) for _ in range(4)]
    assert [None if item is None else item.indices.item() for item in given] == [5, 1, 9, None], "two of the outer are on their way"
    for made in ("0", "5", "1", "9"):
        assert not plan.idles(), "a batch arrives next"
        plan.arrived(made)
    assert not plan.idles(), "an empty item does, but no pass may have more made ahead"
    assert list(outer.made) == ["0", "1"] and list(inner.made) == ["5"] and list(plan.expected.made) == ["9"]
    outer.made.popleft()
    assert plan.idles()
    plan.arrived(None)
    assert next(walk).indices == [2]
