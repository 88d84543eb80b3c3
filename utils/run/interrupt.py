"""Stopping a run from outside: Ctrl-C and SIGTERM end it in order, with one line that says how to continue."""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

INTERRUPTED, TERMINATED = 130, 143  # exit codes of a shell: 128 + SIGINT, 128 + SIGTERM


class Terminated(BaseException):
    """SIGTERM came. Like KeyboardInterrupt no `except Exception` stops it."""


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Inside, SIGTERM raises `Terminated` (in the main thread; elsewhere python cannot set handlers)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def how_to_resume(argv: Sequence[str]) -> str:
    """The line for a stopped command: the same command with --resume."""
    command = ["python", "main.py", *argv]
    return f"continue with: {shlex.join(command if '--resume' in argv else [*command, '--resume'])}"
