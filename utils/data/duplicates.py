"""Test images that are also training images: legal, but the accuracy then means little.

The check runs at every start, so it is cheap and bounded: file sizes first; of files of one size a block of bytes; whole
files only where those agree. At most `SAMPLED` test images, evenly spread, are looked at; listing sizes and comparing may
take `SECONDS` each; the first process does it for all.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import time
from collections.abc import Iterable, Iterator

import numpy as np

from utils.data.paths import Paths
from utils.data.types import ImageSet

log = logging.getLogger("slca.data")

SAMPLED = 1000  # test images: if a share p of them were doubles, none would be met with a probability of (1 - p)^1000
SECONDS = 5.0
BLOCK = 256  # bytes from the middle of a file: the heads of photos of one camera or program are equal
EVERY = 4096  # files between two looks at the clock
LARGEST = 64 * 2**20  # bytes; larger images are compared by block and size alone


def duplicate_notes(train: ImageSet, test: ImageSet) -> list[str]:
    """A note if test images are also training images, files only."""
    if isinstance(train.images, np.ndarray) or isinstance(test.images, np.ndarray) or not len(test) or not is_first_process():
        return []
    looked_at = np.linspace(0, len(test) - 1, min(SAMPLED, len(test))).astype(np.int64)
    train_sizes, test_sizes = _sizes(train.images.raw(), len(train)), _sizes(test.images[looked_at].raw(), len(looked_at))
    if len(train_sizes) < len(train):
        log.info("looking for test images among the training images: %d of %d, the disk is slow", len(train_sizes), len(train))
    pairs = [(int(looked_at[i]), twin) for i, twin in _pairs(train.images, train_sizes, test.images[looked_at], test_sizes)]
    if not pairs:
        return []
    of = f"{len(test)} test images"
    if len(looked_at) < len(test):
        of = f"{len(looked_at)} test images that were looked at ({len(test)} in all)"
    first = f"e.g. {test.images[pairs[0][0]]} = {train.images[pairs[0][1]]}"
    return [f"{len(pairs)} of {of} are also training images, {first}; its accuracy will look too good"]


def _sizes(paths: Iterable[bytes], count: int) -> np.ndarray:
    """(n,) int64 bytes of the files, -1 of what is no regular file; n < count if the time is up before."""
    sizes, until = np.full(count, -1, dtype=np.int64), time.monotonic() + SECONDS
    for i, path in enumerate(paths):
        if i % EVERY == 0 and time.monotonic() > until:
            return sizes[:i]
        try:
            found = os.stat(path)
        except OSError:  # whoever decodes the image says what is wrong with it
            continue
        if stat.S_ISREG(found.st_mode):
            sizes[i] = found.st_size
    return sizes


def _pairs(train: Paths, train_sizes: np.ndarray, test: Paths, test_sizes: np.ndarray) -> Iterator[tuple[int, int]]:
    """(test image, training image) with the same bytes, one pair per test image."""
    order, until = np.argsort(train_sizes, kind="stable"), time.monotonic() + SECONDS
    starts, stops = (np.searchsorted(train_sizes[order], test_sizes, side) for side in ("left", "right"))
    blocks: dict[int, bytes] = {}  # of training images
    for i, (size, start, stop) in enumerate(zip(test_sizes.tolist(), starts, stops, strict=True)):
        if size <= 0 or start == stop:
            continue
        if time.monotonic() > until:
            return
        own = _block(test.text(i), size)
        for twin in order[start:stop].tolist():
            if twin not in blocks:
                blocks[twin] = _block(train.text(twin), size)
            if blocks[twin] == own and _digest(train.text(twin), size) == _digest(test.text(i), size):
                yield i, twin
                break


def _block(path: str, size: int) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(max(0, size // 2 - BLOCK // 2))
            return file.read(BLOCK)
    except OSError:
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
