"""Decoded images in one file, with a checksum for each image: what `"cache": "disk"` keeps under data_root/cache.

The file is all pixels one after another, then a table (height, width, CRC-32 of each image), then a footer with a hash of
the table. It is written under another name, which a lock keeps to one process, and takes its own name when it is whole.
It is derived data: whatever is wrong with it, the image files are decoded again, with a warning. No link is followed.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import shutil
import stat
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from filelock import FileLock, Timeout

from utils.errors import UserError
from utils.images.store import read_image
from utils.images.transforms import Images

log = logging.getLogger("slca.data")

FOOTER = struct.Struct("<8sQ16s")  # what it is, number of images, hash of the table
MAGIC = b"SLCApix1"
NAME_BYTES = 100  # of the data set's name in the file's; systems allow 255 in all
LOOK = 10.0  # seconds between two looks at what another process has written
PATIENCE = 1800.0  # seconds without a byte from that process, then it is told
GIB = 2**30

Decode = Callable[[], "Iterator[np.ndarray | None]"]  # every image (H, W, 3) uint8 in order; None: left out


class DiskStore:
    """Images in a cache file, checked when they are read for the first time.

    Args:
        file: the open cache file
        where: its path, for messages
        table: (N, 3) height, width, CRC-32 of each image; height 0: left out
        paths: the N image files, to decode what is damaged in the cache
    """

    def __init__(self, file: BinaryIO, where: Path, table: np.ndarray, paths: Sequence[Path]) -> None:
        self.positions = np.flatnonzero(table[:, 0])  # (n,) image i of the store is paths[positions[i]]
        self.where, self.paths = where, paths
        self.sizes, self.sums = table[self.positions, :2], table[self.positions, 2]
        self.ends = np.cumsum(3 * self.sizes.prod(1))
        self.in_memory = len(np.unique(self.sizes, axis=0)) == 1  # such a batch costs no more than one from an array
        self._file: BinaryIO | None = file
        self._start()

    def _start(self) -> None:
        self._right = np.frombuffer(mmap.mmap(-1, max(1, len(self.positions))), dtype=np.uint8)  # flags; forked workers share them
        self._warned = False

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes that are not forked: each opens the file by itself."""
        return {**self.__dict__, "_file": None, "_right": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def get(self, indices: np.ndarray) -> Images:
        if not self.in_memory:
            return [torch.from_numpy(self._image(i)).permute(2, 0, 1) for i in indices]
        batch = np.empty((len(indices), *self.sizes[0], 3), dtype=np.uint8)
        for row, i in zip(batch, indices, strict=True):
            self._fill(row, i)
        return torch.from_numpy(batch).permute(0, 3, 1, 2)

    def image_bytes(self, indices: np.ndarray) -> int:
        return int(3 * self.sizes[indices].prod(1).sum())

    def _image(self, i: int) -> np.ndarray:
        image = np.empty((*self.sizes[i], 3), dtype=np.uint8)
        self._fill(image, i)
        return image

    def _fill(self, image: np.ndarray, i: int) -> None:
        """Read image `i` into `image` (H, W, 3); from its own file if the cache is damaged there."""
        if self._read(image, int(self.ends[i]) - image.nbytes) and (self._right[i] or zlib.crc32(image) == self.sums[i]):
            self._right[i] = 1
            return
        path = self.paths[self.positions[i]]
        if not self._warned:
            self._warned = True
            log.warning("cache file %s is damaged at image %s, which is decoded again, as all such images will be; the next start makes a "
                        "new cache file", self.where, path)
            with suppress(OSError):
                self.where.unlink()
        again = read_image(path)
        if again.shape != image.shape:
            raise UserError(f"image {path} has changed since the run started; start again")
        image[...] = again

    def _read(self, image: np.ndarray, start: int) -> bool:
        """Fill `image` with the bytes from `start` on; False if they are not there or cannot be read."""
        try:
            if self._file is None:
                self._file = _open_regular(self.where)
            if hasattr(os, "preadv"):  # processes that share the open file do not move each other's place in it
                return os.preadv(self._file.fileno(), [image.reshape(-1)], start) == image.nbytes
            self._file.seek(start)
            return self._file.readinto(image.reshape(-1)) == image.nbytes  # type: ignore[attr-defined]
        except OSError:
            return False


def open_disk_cache(paths: Sequence[Path], decode: Decode, *, name: str, folder: Path, variant: object, expected: int) -> DiskStore:
    """The cache of the images at `paths`, made first if it is not there, if an image has changed, or if it is damaged.

    Args:
        name: of the data set and split, for the log and the file's name
        variant: whatever else decides what is in the file
        expected: bytes that it will take, about

    Raises:
        UserError: an image cannot be read, the disk is too small or cannot be written, another process does not get on.
    """
    key = hashlib.blake2b(repr((MAGIC, [_stamp(path) for path in paths], variant)).encode(), digest_size=8).hexdigest()
    file = folder / f"{_file_name(name)}-{key}.bin"
    try:
        _remove_left_overs(folder)
        store = _opened(file, paths)
        if store is None:
            folder.mkdir(parents=True, exist_ok=True)
            with _only_writer(file):
                store = _opened(file, paths)  # of several processes one decodes, the others have waited
                if store is None:
                    if os.path.lexists(file):
                        log.warning("cache file %s is damaged; it is made again", file)
                    _need_space(folder, expected)
                    _write(file, decode())
                    store = _opened(file, paths)
    except OSError as error:
        raise UserError(f"\"cache\": \"disk\" cannot write {file} ({error.strerror or error}); make room or name another data_root, or set "
                        '"cache" to "ram" or "none"') from None
    if store is None:
        raise UserError(f"cache file {file} is not there although it was just written; does another program delete it?")
    log.info("%s: decoded images in %s, %.1f GiB", name, file, (int(store.ends[-1]) if len(store.ends) else 0) / GIB)
    return store


def _stamp(path: Path) -> tuple[str, int, int]:
    """What changes when an image does; the decoder tells one that is not there."""
    try:
        found = path.stat()
    except OSError:
        return os.fspath(path), -1, -1
    return os.fspath(path), found.st_size, found.st_mtime_ns


def _file_name(name: str) -> str:
    """`name` as part of a file's name: letters and digits of any script, cut by bytes."""
    plain = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
    return plain.encode()[:NAME_BYTES].decode(errors="ignore")


# Reading -----------------------------------------------------------------------------------------------------

def _open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read, and no link, pipe or device. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise FileNotFoundError(f"{path} is no regular file")
    return open(handle, "rb", buffering=0)


def _opened(file: Path, paths: Sequence[Path]) -> DiskStore | None:
    """The cache in `file`; None if there is none that can be used."""
    try:
        handle = _open_regular(file)
    except OSError:
        return None
    table = _table(handle, len(paths))
    if table is None:
        handle.close()
        return None
    return DiskStore(handle, file, table, paths)


def _table(handle: BinaryIO, count: int) -> np.ndarray | None:
    """(count, 3) height, width, CRC-32 of each image; None if the file is not a whole one of `count` images."""
    length = os.fstat(handle.fileno()).st_size
    start = length - FOOTER.size - 12 * count
    if start < 0:
        return None
    handle.seek(start)
    data = handle.read(12 * count + FOOTER.size)
    if len(data) != 12 * count + FOOTER.size or data[12 * count:] != _footer(data[:12 * count], count):
        return None
    table = np.frombuffer(data, dtype="<u4", count=3 * count).reshape(count, 3).astype(np.int64)
    return table if 3 * table[:, :2].prod(1).sum() == start else None


def _footer(table: bytes, count: int) -> bytes:
    return FOOTER.pack(MAGIC, count, hashlib.blake2b(table, digest_size=16).digest())


# Writing -----------------------------------------------------------------------------------------------------

def _write(file: Path, images: Iterator[np.ndarray | None]) -> None:
    """Write all `images`, then give the file its name. Raises OSError, or what `images` raises."""
    part = file.with_suffix(".part")
    part.unlink(missing_ok=True)  # of a process that was killed, or a link
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666), "wb") as out:
            rows = []
            for image in images:
                if image is None:
                    rows.append((0, 0, 0))
                    continue
                pixels = np.ascontiguousarray(image)
                out.write(pixels)
                rows.append((*pixels.shape[:2], zlib.crc32(pixels)))
            table = np.array(rows, dtype="<u4").reshape(-1, 3).tobytes()
            out.write(table + _footer(table, len(rows)))
            out.flush()
            os.fsync(out.fileno())
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def _need_space(folder: Path, expected: int) -> None:
    free = shutil.disk_usage(folder).free
    if expected > free:
        raise UserError(f"\"cache\": \"disk\" needs about {expected / GIB:.1f} GiB in {folder}, {free / GIB:.1f} GiB are free; make room, "
                        'name another data_root, or set "cache" to "none"')


def _remove_left_overs(folder: Path) -> None:
    """Delete unfinished files whose writer is dead: nobody holds their lock."""
    for part in folder.glob("*.part"):
        with suppress(OSError, Timeout), _lock(part).acquire(timeout=0):
            part.unlink(missing_ok=True)
            log.info("%s deleted: it was never finished, and nobody writes it any more", part)


def _lock(file: Path) -> FileLock:
    """The operating system's lock that belongs to a cache file and its unfinished form; it ends with the process."""
    path = file.with_suffix(".lock")
    if path.is_symlink():
        path.unlink()
    return FileLock(path)


@contextmanager
def _only_writer(file: Path) -> Iterator[None]:
    """Hold the file's lock; while another process writes, wait as long as it gets on. Raises UserError."""
    lock, part = _lock(file), file.with_suffix(".part")
    size, quiet = -1, 0.0
    while not _acquired(lock, 0.1 if size < 0 else LOOK):
        if size < 0:
            log.info("another process is writing %s; waiting for it", file)
        before, size = size, part.stat().st_size if part.is_file() else 0
        quiet = quiet + LOOK if size == before else 0.0
        if quiet >= PATIENCE:
            raise UserError(f"another process holds {lock.lock_file} and has written nothing for {PATIENCE / 60:.0f} minutes; end it, "
                            'or set "cache" to "none"')
    try:
        yield
    finally:
        lock.release()


def _acquired(lock: FileLock, seconds: float) -> bool:
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        return False
    return True
