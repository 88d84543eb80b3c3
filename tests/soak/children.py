"""Runs in forked children that have everything imported: what each printed, how it ended, and a limit on its time."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

T = TypeVar("T")
FORK = multiprocessing.get_context("fork")
HANGS = -1000  # in place of an exit code


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code (minus the signal's number where one killed it, HANGS after the limit), and what it printed."""

    code: int
    output: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.output.splitlines() if line.startswith("error: ")]

    def problem(self) -> str | None:
        """What is wrong with an end that was not asked for: neither done nor one sentence with exit code 2."""
        if self.code == HANGS:
            return "hangs"
        if "Traceback" in self.output:
            return "a traceback"
        if self.code == 2 and len(self.errors) == 1 and len(self.errors[0]) < 3000:
            return None
        return None if self.code == 0 and not self.errors else f"exit code {self.code} with {len(self.errors)} sentences"


def run_main(arguments: Sequence[str], output: Path, seconds: float, prepare: Callable[[], None] = lambda: None) -> Ended:
    """`python main.py ARGUMENTS` in a forked child, after `prepare` there; killed with its children after `seconds`."""
    output.unlink(missing_ok=True)
    child = FORK.Process(target=_main, args=(arguments, output, prepare))
    child.start()
    child.join(seconds)
    code = child.exitcode
    if code is None:
        code = HANGS
        os.kill(child.pid, signal.SIGABRT)  # prints where every thread is
        child.join(5)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # workers that it left
    child.join()
    return Ended(code, output.read_text(errors="replace") if output.exists() else "")


def _main(arguments: Sequence[str], output: Path, prepare: Callable[[], None]) -> None:
    from tests.processes import run_as_main

    os.setsid()
    run_as_main(list(arguments), str(output), prepare=lambda: (faulthandler.enable(), prepare()))


def stub_slow_parts() -> Callable[[], None]:
    """Pictures take most of a tiny run's time: their files are written, their drawing is left out. The git commit is looked up once.

    Returns:
        What undoes it.
    """
    from pytest import MonkeyPatch

    from utils.machine import environment
    from utils.report import page

    commit = environment.git_commit(environment.PROJECT)
    figure = SimpleNamespace(get_size_inches=lambda: (1.0, 1.0))
    patch = MonkeyPatch()
    patch.setattr(environment, "git_commit", lambda project: commit)
    for name in ("curve_figure", "matrix_figure", "confusion_figure", "timeline_figure"):
        patch.setattr(page, name, lambda *results, **theme: figure)
    patch.setattr(page, "freeze_layout", lambda figure: None)
    for name in ("svg_bytes", "pdf_bytes", "png_bytes"):
        patch.setattr(page, name, lambda figure: b"<svg><defs></defs></svg>" * 100)
    return patch.undo


def in_parts(items: Sequence[T], jobs: int, work: Callable[[T], str], fine: Collection[str], minutes: float) -> list[str]:
    """`work(item)` for every item in `jobs` processes, until they or the minutes are used up; what is not `fine` is shown as it comes.

    Returns:
        What each call gave.

    Raises:
        RuntimeError: `work` itself failed in some process, which has printed why.
    """
    results = FORK.SimpleQueue()
    end = time.monotonic() + 60 * minutes

    def one_part(part: int) -> None:
        try:
            for item in items[part::jobs]:
                if time.monotonic() > end:
                    break
                results.put(work(item))
        finally:
            results.put(None)

    workers = [FORK.Process(target=one_part, args=(part,)) for part in range(jobs)]
    for worker in workers:
        worker.start()
    found: list[str] = []
    while jobs:
        result = results.get()
        if result is None:
            jobs -= 1
            continue
        found.append(result)
        if result not in fine:
            print(result, flush=True)
        if len(found) % 100 == 0:
            print(f"{len(found)} of {len(items)} done", flush=True)
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise RuntimeError("not all was done; the traceback above says why")
    return found
