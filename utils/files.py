"""Files that are either the old version or the new one, never half of each."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from utils.errors import StorageError, UserError
from utils.terminal import visible

PIPE_SECONDS = 60  # that a named pipe may be without a reader
PROJECT = Path(__file__).resolve().parent.parent
DISK_ERRORS = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up", errno.EFBIG: "files may not grow any more",
               errno.EROFS: "the disk is read-only", errno.EIO: "the disk fails"}


def write_atomic(path: Path | str, data: bytes | str) -> Path:
    """Write `data` (text as UTF-8) to `path` so that a crash or a full disk leaves the previous file as it was.

    The bytes go to a temporary file in the same folder (made if missing), are flushed to the disk, and take the name in one
    step. A link stays: the file it points to is replaced. What is no regular file (/dev/null, a pipe, /dev/stdout) is never
    replaced, the bytes are written straight into it. In text, bytes of file names that are not UTF-8 are written out (\\xe9).

    Returns:
        `path` as given.

    Raises:
        OSError: the disk is full, the folder cannot be written, or nobody reads from the pipe; the temporary file is gone again.
    """
    path = Path(path)
    if isinstance(data, str):
        data = encodable(data).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not _written_straight(path, data):
            _replace(Path(os.path.realpath(path)) if path.is_symlink() else path, data)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk names none
        raise
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name in the folder of `path`, for what writes a file by itself; what was written takes the name `path` at the end.

    The file is flushed to the disk first. After an error inside it is gone, and `path` is as it was.
    """
    temporary = path.with_name(f".{path.name[:60]}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync_file(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def encodable(text: str) -> str:
    """`text` with whatever UTF-8 cannot hold (halves of surrogate pairs) written out."""
    return text if text.isascii() else "".join(visible(c) if "\ud800" <= c <= "\udfff" else c for c in text)


def _replace(target: Path, data: bytes) -> None:
    """Write a regular file under a temporary name, then rename it."""
    temporary = target.with_name(f".{target.name[:60]}.{os.getpid()}.tmp")  # 60 letters may take 240 of a name's 255 bytes
    temporary.unlink(missing_ok=True)  # of a dead process that had our number
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def _written_straight(path: Path, data: bytes) -> bool:
    """Write into what must not be replaced: no regular file, or the file behind stdout or stderr. False where `path` is neither."""
    try:
        there = os.stat(path)
    except FileNotFoundError:  # not there yet, or a link to a file that is not
        return False
    descriptor = _standard_descriptor(there)
    if descriptor is not None:
        with suppress(BrokenPipeError), open(os.dup(descriptor), "wb") as file:  # | head: the reader has enough
            file.write(data)
        return True
    if stat.S_ISREG(there.st_mode):
        return False
    with open(_open_pipe(path) if stat.S_ISFIFO(there.st_mode) else path, "wb") as file:
        file.write(data)
    return True


def _standard_descriptor(there: os.stat_result) -> int | None:
    """1 or 2 where that is this very file (/dev/stdout, also behind "> file"), with what was printed so far flushed into it."""
    for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)):
        with suppress(OSError):  # closed, or nobody reads any more
            if os.path.samestat(there, os.fstat(descriptor)):
                if stream is not None:
                    stream.flush()
                return descriptor
    return None


def _open_pipe(path: Path) -> int:
    """The descriptor of a named pipe once somebody reads from it. Raises OSError after PIPE_SECONDS without a reader."""
    end = time.monotonic() + PIPE_SECONDS
    while True:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if time.monotonic() > end:
                raise OSError(errno.ENXIO, f"nobody reads from this pipe (waited {PIPE_SECONDS} s)", str(path)) from None
            time.sleep(0.05)
        else:
            os.set_blocking(descriptor, True)
            return descriptor


def links_that_leave(folder: Path) -> list[Path]:
    """Links anywhere in `folder` that point to something outside of it."""
    inside = folder.resolve()
    found = []
    for parent, folders, files in os.walk(folder):
        paths = [Path(parent, name) for name in (*folders, *files)]
        found += [path for path in paths if path.is_symlink() and inside not in Path(os.path.realpath(path)).parents]
    return sorted(found)


def refuse_links(folder: Path) -> None:
    """Raises UserError where writing into a run's folder would write elsewhere."""
    leaving = links_that_leave(folder)
    if leaving:
        raise UserError(f"{leaving[0]} is a link to {os.path.realpath(leaving[0])}, outside of the run's folder. A run writes into its "
                        "own folder alone: remove the link (to keep runs on another disk, name a folder there with --out)")


def sync_file(path: Path) -> None:
    """Make what was written to a file so far survive a power cut; nothing where there is no such file."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        os.fsync(file.fileno())


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


def bytes_of_file(path: Path) -> bytes:
    """What a file holds. Raises OSError, also where it is a pipe or a device, which would be waited for."""
    if path.exists() and not path.is_file():
        raise OSError(f"{path.name} is no regular file")
    return path.read_bytes()


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


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


@contextmanager
def storage_errors_told(path: Path) -> Iterator[Path]:
    """Inside, that `path` cannot be written is one sentence, whatever the reason: disk, permission, its folder. Raises StorageError."""
    try:
        yield path
    except FileNotFoundError:
        raise StorageError(f"{path} cannot be written: {path.parent} was moved or removed while the run wrote there. Put it back and "
                           "continue with --resume, or start a new run.") from None
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}; checkpoints and results written so far are intact. Free "
                           "some space or make the folder writable, then continue with --resume.") from None
