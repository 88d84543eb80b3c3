"""Files that are either the old version or the new one, never half of each."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import StorageError

PROJECT = Path(__file__).resolve().parent.parent
DISK_ERRORS = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up", errno.EFBIG: "files may not grow any more",
               errno.EROFS: "the disk is read-only", errno.EIO: "the disk fails"}


def write_atomic(path: Path | str, data: bytes | str) -> Path:
    """Write `data` (text as UTF-8) to `path` so that a crash or a full disk leaves the previous file as it was.

    The bytes go to a temporary file in the same folder (made if missing), are flushed to the disk, and take
    the name in one step. Returns the path.

    Raises:
        OSError: the disk is full, or the folder cannot be written; the temporary file is gone again.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:200]}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return path


def sync_folder(folder: Path) -> None:
    """Make the new name itself survive a power cut, where the system can (not on Windows)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def locate(path: str) -> str:
    """`path` as written, or inside the project's folder where only that exists: shipped configs run from anywhere."""
    inside = PROJECT / path
    return str(inside) if not Path(path).exists() and inside.exists() else path


def sha256_of(data: bytes) -> str:
    """Hexadecimal SHA-256 of bytes in memory."""
    return hashlib.sha256(data).hexdigest()


@contextmanager
def disk_errors_as_user_error(folder: Path) -> Iterator[None]:
    """Inside, a disk that is full or fails is one sentence instead of a traceback. Raises StorageError."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise StorageError(f"{folder}: cannot be written, {DISK_ERRORS[error.errno]}; checkpoints and results written so far are intact. "
                           "Free some space, then continue with --resume.") from None
