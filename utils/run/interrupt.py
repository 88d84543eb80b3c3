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


class _Requested:
    """The stop that was asked for last; None where none was."""

    exception: type[BaseException] | None = None


@contextmanager
def signals_stop() -> Iterator[None]:
    """Inside, SIGTERM raises `Terminated` and SIGINT KeyboardInterrupt (in the main thread; elsewhere python cannot set handlers).

    An exception that python happens to raise inside a destructor or a fork's callback is printed and forgotten, so the request is
    remembered too: `check_stop` raises it again. Inside an import a library may catch it and go on with half a module; the error
    which that ends in is the request's.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        _Requested.exception = KeyboardInterrupt if number == signal.SIGINT else Terminated
        raise _Requested.exception

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except Exception:
        check_stop()
        raise
    finally:
        _Requested.exception = None
        for number, handler in before.items():
            signal.signal(number, handler)


def check_stop() -> None:
    """Raise the stop that was asked for, where its exception was lost; called in every step, and once all is imported."""
    if _Requested.exception is not None:
        raise _Requested.exception from None


def how_to_resume(argv: Sequence[str]) -> str:
    """The line for a stopped command: the same command with --resume."""
    command = ["python", "main.py", *argv]
    return f"continue with: {shlex.join(command if '--resume' in argv else [*command, '--resume'])}"
