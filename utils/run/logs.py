"""Where a run's log lines go: the terminal, and each seed's log.txt."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import UserError
from utils.files import storage_errors_told
from utils.last_resort import one_sentence
from utils.terminal import TerminalHandler, visible

log = logging.getLogger("slca")


@contextmanager
def terminal_log() -> Iterator[None]:
    """Inside, what is logged is shown on the terminal."""
    handler = TerminalHandler()
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


class _LogFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


@contextmanager
def file_log(path: Path, before: Iterable[str] = ()) -> Iterator[None]:
    """Inside, what is logged goes into a file too; so does the traceback of an error that nobody foresaw.

    Args:
        before: what was told before the file was opened, and belongs into it.

    Raises:
        StorageError: the file cannot be opened.
    """
    with storage_errors_told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    handler.handleError = lambda record: None  # a full disk loses log lines; the checkpoint tells it in one sentence
    handler.setFormatter(_LogFormatter("%(asctime)s  %(message)s"))
    for message in before:
        handler.handle(logging.makeLogRecord({"msg": message}))
    log.addHandler(handler)
    try:
        yield
    except Exception as error:
        if not isinstance(error, UserError):
            handler.handle(logging.makeLogRecord({"msg": one_sentence(error), "exc_info": (type(error), error, error.__traceback__)}))
            error.log_file = path  # named to the user
        raise
    finally:
        log.removeHandler(handler)
        handler.close()
