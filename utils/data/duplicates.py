"""Test images that are also training images: legal, but the accuracy then means little.

The check runs at every start, so it is cheap and bounded: file sizes first; of pairs of one size a block of bytes; whole
files only where those agree. At most `SAMPLED` test images, evenly spread, are looked at, for at most `SECONDS`; the first
process does it for all.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator

import numpy as np

from utils.data.paths import Paths
from utils.data.types import ImageSet

SAMPLED = 1000  # test images: if a share p of them were doubles, none would be met with a probability of (1 - p)^1000
SECONDS = 5.0
BLOCK = 256  # bytes from the middle of a file: the heads of photos of one camera or program are equal
EVERY = 4096  # files between two looks at the clock
LARGEST = 64 * 2**20  # bytes; larger images are compared by block and size alone


def duplicate_notes(train: ImageSet, test: ImageSet) -> list[str]:
    """A note if test images are also training images, files only."""
    if isinstance(train.images, np.ndarray) or isinstance(test.images, np.ndarray) or not is_first_process():
        return []
    looked_at = np.linspace(0, len(test) - 1, min(SAMPLED, len(test))).astype(np.int64)
    until = time.monotonic() + SECONDS
    pairs = list(_pairs(train.images, test.images, looked_at, until))
    if not pairs:
        return []
    first = f"e.g. {test.images[pairs[0][0]]} = {train.images[pairs[0][1]]}"
    of = f"{len(test)} test images"
    if len(looked_at) < len(test):
        of = f"{len(looked_at)} test images that were looked at ({len(test)} in all)"
    return [f"{len(pairs)} of {of} are also training images, {first}; its accuracy will look too good"]


def _pairs(train: Paths, test: Paths, looked_at: np.ndarray, until: float) -> Iterator[tuple[int, int]]:
    """(test image, training image) with the same bytes, one pair per test image."""
    test_sizes = _sizes(test, looked_at, until)
    train_sizes = _sizes(train, np.arange(len(train)), until)
    order = np.argsort(train_sizes, kind="stable")
    starts, stops = (np.searchsorted(train_sizes[order], test_sizes, side) for side in ("left", "right"))
    blocks: dict[int, bytes] = {}  # of training images
    for position, size, start, stop in zip(looked_at.tolist(), test_sizes.tolist(), starts, stops, strict=True):
        if size <= 0 or start == stop:
            continue
        if time.monotonic() > until:
            return
        own = _block(test.text(position), size)
        for twin in order[start:stop].tolist():
            if twin not in blocks:
                blocks[twin] = _block(train.text(twin), size)
            if blocks[twin] == own and _digest(train.text(twin), size) == _digest(test.text(position), size):
                yield position, twin
                break


def _sizes(paths: Paths, positions: np.ndarray, until: float) -> np.ndarray:
    """(n,) int64 bytes of the files at `positions`; -1 where there is no regular file, or no time is left."""
    sizes = np.full(len(positions), -1, dtype=np.int64)
    for i, position in enumerate(positions.tolist()):
        if i % EVERY == 0 and time.monotonic() > until:
            break
        sizes[i] = _size(paths.text(position))
    return sizes


def _size(path: str) -> int:
    try:
        found = os.stat(path)
    except OSError:
        return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else -1


def _block(path: str, size: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, size // 2 - BLOCK // 2))
            return file.read(BLOCK)
    except OSError:  # whoever decodes the image says what is wrong with it
        return b""


def _digest(path: str, size: int) -> bytes:
    if size > LARGEST:
        return b""
    try:
        with open(path, "rb") as file:
            return hashlib.blake2b(file.read()).digest()
    except OSError:
        return os.fsencode(path)  # like no other


def is_first_process() -> bool:
    """Whether this is the first of the processes that share a run, as torchrun and Lightning number them."""
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"
