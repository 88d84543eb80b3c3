"""What is said about an error that nobody foresaw: one sentence for the user, the traceback kept in a file."""

from __future__ import annotations

import errno
import tempfile
import traceback
from pathlib import Path

from utils.errors import UserError
from utils.files import PROJECT

LONGEST = 300  # characters of another library's message, and of a path
REFUSALS = {errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS,
            errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}  # of the system, because of what a path is or where it is


def one_sentence(error: BaseException) -> str:
    """A UserError's message; of another exception its kind, its first line, and the line of this project that it came from."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    first = next(iter(str(error).strip().splitlines()), "")[:LONGEST]
    return f"{type(error).__name__}{': ' if first else ''}{first}{_where(error)}"


def refused_path(error: BaseException) -> str | None:
    """What to say where the system refuses a path, which whoever named it can mend and no traceback explains; None for other errors."""
    if not isinstance(error, OSError) or error.errno not in REFUSALS or not error.filename:
        return None
    path = str(error.filename)
    shown = path if len(path) <= LONGEST else f"{path[:LONGEST]}..."
    return f"{shown} cannot be used: {error.strerror}; name another place, or make room or give permission there"


def _where(error: BaseException) -> str:
    """" (models/base.py, line 120)", the innermost line of this project that the error passed."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename).resolve()
        if PROJECT in file.parents and "site-packages" not in file.parts:
            return f" ({file.relative_to(PROJECT)}, line {frame.lineno})"
    return ""


def keep_traceback(error: BaseException) -> Path:
    """The file that holds the traceback: the run's log.txt where the trainer wrote it there, else a new temporary file."""
    log_file: Path | None = getattr(error, "log_file", None)
    if log_file is None:
        with tempfile.NamedTemporaryFile("w", prefix="slca_", suffix="_traceback.txt", delete=False, encoding="utf-8",
                                         errors="backslashreplace") as file:
            traceback.print_exception(type(error), error, error.__traceback__, file=file)
        log_file = Path(file.name)
    return log_file


def told(error: BaseException) -> str:
    """What to print for an error that nobody foresaw; its traceback is kept."""
    try:
        kept = f"the traceback is in {keep_traceback(error)}"
    except OSError:  # the disk is full there too
        kept = "the traceback could not be kept (--verbose shows it)"
    failed = "" if isinstance(error, OSError) and error.filename is not None else "the program failed, "
    return f"{failed}{one_sentence(error)}; {kept}"
