"""A tiny run is killed, or its disk fails, at every system call that changes its folder; resumed, it ends bit for bit as if nothing was.

    python -m tests.soak faults                     every call, four ways each, and as many random ones with a second fault
    python -m tests.soak faults --seed 0 --only 17  fault 17 of that list again

Seen are open for writing, write, truncate, fsync, mkdir, rmdir, rename, link and unlink, of all threads, as the C library gets them
(calls.c). Not seen: reads, closes, what the kernel holds back until a power cut, files outside of the run's folder, other processes.
Checkpoints are written by their thread as always; in the walk the training waits for it, so that call n is the same call every time.
"""

from __future__ import annotations

import errno
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.soak import shim
from tests.soak.children import Ended, in_parts, run_main
from tests.soak.shim import How

FINE = "as uninterrupted"
SECONDS = 60.0  # of one run; alone it takes less than one
SETTINGS = {"epochs": 2, "init_cls": 3, "ca_epochs": 1, "keep_checkpoints": "last", "save_before_ca": True}
CALLS_TO_RESUME = 20  # about as many does a run that resumes make before its first new step
DERIVED = ("results.csv", "results_tidy.csv", "report.html", "curve.png", "matrix.png")


@dataclass(frozen=True)
class Fault:
    """At call `at` (from 1) of a run; `then` at one of the run that resumes it."""

    at: int
    how: How
    error: int = errno.ENOSPC
    in_order: bool = True  # the training waits for each checkpoint
    then: Fault | None = None

    def __str__(self) -> str:
        error = f" {errno.errorcode[self.error]}" if self.how >= How.FAIL_ONCE else ""
        return f"{self.how.name}{error} at call {self.at}" + ("" if self.then is None else f", then {self.then}")


KINDS = [(How.KILL_BEFORE, 0), (How.KILL_HALF, 0), (How.FAIL_ON, errno.ENOSPC), (How.FAIL_ONCE, errno.EIO)]
MORE_KINDS = [*KINDS, (How.KILL_AFTER, 0), (How.FAIL_ON, errno.EIO), (How.FAIL_ONCE, errno.ENOSPC), (How.FAIL_ONCE, errno.EACCES)]


class Walk:
    """The run, how it ends when nothing happens, and what happens to it."""

    def __init__(self, folder: Path) -> None:
        from tests.processes import write_config
        from tests.run_files import only_run, tiny_config

        self.folder = folder
        self.config = write_config(tiny_config(**SETTINGS), folder / "tiny.json")
        ended = self.run(folder / "whole", Fault(0, How.COUNT))
        assert ended.code == 0, ended.output
        self.whole = only_run(folder / "whole" / "out" / "tiny")
        self.calls = (folder / "whole" / "trace").read_text().splitlines()

    def run(self, folder: Path, fault: Fault | None) -> Ended:
        """Start or resume the run in `folder`, with a fault or without one."""
        out = folder / "out"
        out.mkdir(parents=True, exist_ok=True)

        def prepare() -> None:
            if fault is not None:
                if fault.in_order:
                    write_in_order()
                shim.arm(out, fault.at, fault.how, fault.error, folder / "trace")

        return run_main(["--config", str(self.config), "--out", str(out), "--resume"], folder / "output.txt", SECONDS, prepare)

    def outcome(self, number: int, fault: Fault) -> str:
        """"as uninterrupted", or what is wrong after this fault, with how to see it again."""
        folder = self.folder / f"fault{number}"
        told = [f"fault {number}, {fault}"]
        following: Fault | None = fault
        try:
            while following is not None:
                ended = self.run(folder, following)
                found = _problem_of_faulty_run(ended, following)
                lines = (folder / "trace").read_text().splitlines() if (folder / "trace").exists() else []
                told.append(f"met {lines[following.at - 1]!r}" if following.at <= len(lines) else "met no call")
                if found:
                    return f"{': '.join([*told, found])}\n{ended.output[-1500:]}"
                following = following.then
            ended = self.run(folder, None)
            found = f"resuming gives exit code {ended.code}" if ended.code else ended.problem() or self._difference(folder)
            return f"{': '.join([*told, found])}\n{ended.output[-1500:]}" if found else FINE
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _difference(self, folder: Path) -> str | None:
        """In what the run that was resumed to its end differs from the whole one."""
        from tests.run_files import assert_same_run, only_run

        run = only_run(folder / "out" / "tiny")
        try:
            assert_same_run(self.whole, run)
        except AssertionError as error:
            return f"differs: {error}"[:1500]
        lost = [name for name in DERIVED if not (run / name).is_file() or not (run / name).stat().st_size]
        left = [str(file.relative_to(run)) for file in run.rglob(".*") if file.name != ".lock"]
        return f"lost {lost}" if lost else f"left {left}" if left else None


def _problem_of_faulty_run(ended: Ended, fault: Fault) -> str | None:
    """A killed run is dead (or was done before); one whose disk failed is done, or ends in one sentence with exit code 2."""
    if fault.how in (How.KILL_BEFORE, How.KILL_AFTER, How.KILL_HALF) and ended.code == -9:
        return None
    return ended.problem()


def write_in_order() -> None:
    """The training waits until the thread has written each checkpoint; errors are still raised where they would be."""
    from utils.run.background import NewestJob

    put = NewestJob.put

    def put_and_join(self: NewestJob, job: object, replaceable: bool = True) -> None:
        put(self, job, replaceable)
        if self._thread is not None:
            self._thread.join()

    NewestJob.put = put_and_join


def all_faults(calls: int, seed: int) -> list[Fault]:
    """Every call in the four ways of KINDS, then as many drawn ones that are followed by a second in the resumed run."""
    walk = [Fault(at, how, error) for at in range(1, calls + 1) for how, error in KINDS]
    draw = random.Random(seed)

    def drawn(last: int, then: Fault | None = None) -> Fault:
        how, error = draw.choice(MORE_KINDS)
        return Fault(draw.randint(1, last), how, error, draw.random() < 0.3, then)

    firsts = [drawn(calls) for _ in walk]
    return walk + [replace(first, then=drawn(calls - first.at + CALLS_TO_RESUME)) for first in firsts]


def soak(folder: Path, numbers: Callable[[int], Sequence[int]], seed: int, jobs: int = 1, minutes: float = 30) -> int:
    """Let faults happen and print what came of them; returns the number of problems.

    Args:
        numbers: from how many faults there are to those that are wanted.
    """
    walk = Walk(folder)
    faults = all_faults(len(walk.calls), seed)
    wanted = [(number, faults[number]) for number in numbers(len(faults))]
    found = in_parts(wanted, jobs, lambda item: walk.outcome(*item), [FINE], minutes)
    problems = len(found) - found.count(FINE)
    print(f"{len(walk.calls)} calls, seed {seed}: {len(found)} of {len(faults)} faults, {problems} problems", flush=True)
    return problems
