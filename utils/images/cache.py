"""Image files decoded once and kept as uint8, in memory or in one file on disk.

In memory the worker processes share the pixels with the main one (they are forked from it); on disk all processes of a
machine share what the system keeps of the file (utils/images/disk_cache.py). Whether "auto" keeps images is decided by
free memory and said in the log.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from utils.errors import UserError
from utils.images.disk_cache import open_disk_cache
from utils.images.store import ArrayStore, FileStore, ImageStore, read_image
from utils.machine.cores import available_cores
from utils.machine.memory import available_memory
from utils.terminal import shows_bars

log = logging.getLogger("slca.data")

Cache = Literal["auto", "ram", "disk", "none"]
SAMPLE = 100  # images whose headers are read to estimate the size of all
SHARE = 0.5  # of the free memory that "auto" may fill
AHEAD = 4  # images per thread that are decoded ahead of the one that is kept
GIB = 2**30


class RamStore:
    """Decoded images of different sizes in memory."""

    in_memory = True

    def __init__(self, images: Sequence[np.ndarray]) -> None:
        self.images = [torch.from_numpy(image) for image in images]  # each (H, W, C) uint8

    def get(self, indices: np.ndarray) -> list[Tensor]:
        return [self.images[i].permute(2, 0, 1) for i in indices]

    def image_bytes(self, indices: np.ndarray) -> int:
        return sum(self.images[i].numel() for i in indices)


def open_files(paths: Sequence[Path], cache: Cache, *, name: str, folder: Path, skip_bad: bool = False,
               processes: int = 1) -> tuple[ImageStore, np.ndarray]:
    """A store of the images in `paths`.

    Args:
        name: of the data set and split, for the log and the cache file
        folder: where a disk cache is kept
        skip_bad: read every image now and leave the unreadable ones out, with a warning
        processes: how many of them on this machine keep a copy of their own (for "auto")

    Returns: the store, and the positions (n,) int64 of the images in it; image i of the store is paths[positions[i]].

    Raises:
        UserError: an image cannot be read (unless `skip_bad`), or the disk is too small.
    """
    if cache == "auto":
        cache = _choose(paths, name, processes)
    if cache == "disk":
        store = open_disk_cache(paths, lambda: _decoded(paths, skip_bad, f"caching {name}"), name=name, folder=folder, variant=skip_bad,
                                expected=_decoded_bytes(_sampled_sizes(paths), len(paths)))
        return store, store.positions
    if cache == "none" and not skip_bad:
        return FileStore(paths), np.arange(len(paths))
    images = _decoded(paths, skip_bad, f"reading {name}")
    if cache == "none":
        readable = np.array([i for i, image in enumerate(images) if image is not None], dtype=np.int64)
        return FileStore([paths[i] for i in readable]), readable
    try:
        store, readable = _in_memory(images, len(paths), one_size=len(set(_sampled_sizes(paths))) == 1)
    except MemoryError:
        raise UserError(f"{name}: the decoded images do not fit in memory; set \"cache\" to \"disk\" or \"none\"") from None
    log.info("%s: %d decoded images kept in memory, %.1f GiB", name, len(readable), store.image_bytes(np.arange(len(readable))) / GIB)
    return store, readable


def _in_memory(images: Iterable[np.ndarray | None], count: int, one_size: bool) -> tuple[ImageStore, np.ndarray]:
    """All images in memory, once: in one array when all have one size. And the positions of those that were not left out.

    Args:
        count: how many images come at most
        one_size: they probably have; then the array is made for the first of them
    """
    array: np.ndarray | None = None
    singles: list[np.ndarray] = []
    readable: list[int] = []
    for i, image in enumerate(images):
        if image is None:
            continue
        if one_size and not readable:
            array = np.empty((count, *image.shape), dtype=np.uint8)
        if array is not None and image.shape == array.shape[1:]:
            array[len(readable)] = image
        else:
            if array is not None:
                singles, array = list(array[:len(readable)]), None
            singles.append(image)
        readable.append(i)
    store = RamStore(singles) if array is None else ArrayStore(array[:len(readable)])
    return store, np.array(readable, dtype=np.int64)


def _choose(paths: Sequence[Path], name: str, processes: int) -> Cache:
    """"ram" if the decoded images of all processes fit in half of the free memory, else "none"."""
    free, needed = available_memory(), _decoded_bytes(_sampled_sizes(paths), len(paths)) * processes
    fits = free is not None and needed <= SHARE * free
    chosen: Cache = "ram" if fits else "none"
    known = f"{free / GIB:.1f} GiB" if free is not None else "an unknown amount"
    log.info("%s: cache %s; decoded images take about %.1f GiB in %d process(es), %s of memory is free%s", name, chosen, needed / GIB,
             processes, known, "" if fits else '; "cache": "disk" would keep them in a file')
    return chosen


def _sampled_sizes(paths: Sequence[Path]) -> list[tuple[int, int]]:
    """Width and height of some images, by their headers; unreadable ones are left to the decoder to report."""
    sizes = []
    for i in np.linspace(0, len(paths) - 1, min(SAMPLE, len(paths))).astype(int):
        with contextlib.suppress(Exception), Image.open(paths[i]) as image:
            sizes.append(image.size)
    return sizes


def _decoded_bytes(sizes: list[tuple[int, int]], count: int) -> int:
    """What `count` images take, by the sizes of some."""
    return sum(3 * width * height for width, height in sizes) * count // max(1, len(sizes))


def _decoded(paths: Sequence[Path], skip_bad: bool, what: str) -> Iterator[np.ndarray | None]:
    """Every image (H, W, 3) in order, decoded by threads; None for an unreadable one with `skip_bad`."""
    bad: list[str] = []
    count = available_cores()
    bar = tqdm(total=len(paths), desc=what, unit="image", disable=not shows_bars(), leave=False)
    with bar, ThreadPoolExecutor(max_workers=count) as threads:
        for start in range(0, len(paths), AHEAD * count):
            for result in threads.map(_try_read, paths[start:start + AHEAD * count]):
                if isinstance(result, UserError):
                    if not skip_bad:
                        raise result
                    bad.append(str(result))
                bar.update()
                yield None if isinstance(result, UserError) else result
    if bad:
        log.warning("%s: %d of %d images left out; the first: %s", what, len(bad), len(paths), bad[0])


def _try_read(path: Path) -> np.ndarray | UserError:
    try:
        return read_image(path)
    except UserError as error:
        return error
