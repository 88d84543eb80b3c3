"""A lock on a folder that ends with the process that holds it, however that process ends.

Where nothing forks while the lock is held (the cache, `prepare`) filelock does it. Its lock is one of open files, though, which
forked workers inherit: after a run was killed they would keep its folder locked for as long as they live, and `--resume` would
be refused. The one here is of the process (`lockf`).
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from utils.errors import UserError

log = logging.getLogger("slca")
FLOCK = "hhqqi"  # Linux's struct flock: type, whence, start, length, process
_held: set[Path] = set()  # by this process: the system's lock does not keep a process out of its own folders


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Keep every other process (and this one a second time) out of `folder`.

    The lock is the operating system's, on the file `.lock`; a killed process, or a machine that went down, leaves the file
    but not the lock. Worker processes do not inherit it.

    Raises:
        UserError: somebody else holds it, or it is a link or cannot be written.
    """
    path = folder.resolve() / ".lock"
    taken = UserError(f"{folder} is in use by another run that is still going; wait for it, stop it, or start a new run without --resume")
    if path in _held:  # opening and closing the file once more would drop the lock that is held
        raise taken
    with _opened(path) as stream:
        try:
            _lock(stream)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                raise taken from None
            log.warning(f"{folder} cannot be locked ({error.strerror}): make sure that no other run writes there")
        _held.add(path)
        try:
            yield
        finally:
            _held.discard(path)


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of `folder`, which is not touched; False where the system cannot tell (all but Linux)."""
    if folder.resolve() / ".lock" in _held:  # opening and closing the file would drop it
        return True
    if not sys.platform.startswith("linux"):
        return False
    question = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        with (folder / ".lock").open("rb") as stream:
            return struct.unpack(FLOCK, fcntl.fcntl(stream, fcntl.F_GETLK, question))[0] != fcntl.F_UNLCK
    except OSError:  # no such file: it was never locked
        return False


def _opened(path: Path) -> BinaryIO:
    """The lock's file, made if missing; a link is not followed. Raises UserError."""
    try:
        return open(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666), "r+b", buffering=0)
    except OSError as error:
        problem = "it is a link" if path.is_symlink() else error.strerror
        raise UserError(f"{path} cannot be opened to lock the folder ({problem}); a run needs a folder that it can write, and a .lock of "
                        "its own there") from None


if os.name == "nt":
    import msvcrt

    def _lock(stream: BinaryIO) -> None:
        stream.seek(0)
        msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(stream: BinaryIO) -> None:
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock, not shared with forked workers
