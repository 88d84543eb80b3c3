"""Image files decoded once and kept as uint8, in memory or in one file on disk.

In memory the worker processes share the pixels with the main one (they are forked from it); on disk the file is mapped,
so all processes of a machine share its pages. Whether "auto" keeps images is decided by free memory and said in the log.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from utils.errors import UserError
from utils.images.store import ArrayStore, FileStore, ImageStore, read_image
from utils.machine.cores import available_cores
from utils.terminal import shows_bars

log = logging.getLogger("slca.data")

Cache = Literal["auto", "ram", "disk", "none"]
SAMPLE = 100  # images whose headers are read to estimate the size of all
SHARE = 0.5  # of the free memory that "auto" may fill
CHUNK = 256  # images decoded ahead of the one that is written
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


class DiskStore:
    """Decoded images of different sizes, one after another in a mapped file."""

    in_memory = False

    def __init__(self, pixels: np.ndarray, sizes: np.ndarray) -> None:
        self.pixels = pixels  # (bytes,) uint8
        self.sizes = sizes  # (N, 2) height, width
        self.ends = np.cumsum(3 * sizes.prod(1))

    def get(self, indices: np.ndarray) -> list[Tensor]:
        return [torch.from_numpy(np.array(self._image(i))).permute(2, 0, 1) for i in indices]

    def image_bytes(self, indices: np.ndarray) -> int:
        return int(3 * self.sizes[indices].prod(1).sum())

    def _image(self, i: int) -> np.ndarray:
        height, width = self.sizes[i]
        return self.pixels[self.ends[i] - 3 * height * width:self.ends[i]].reshape(height, width, 3)


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
        sizes, pixels = _disk_cache(paths, name, folder, skip_bad)
        kept = np.flatnonzero(sizes[:, 0])  # height 0: left out
        return _one_size(pixels, sizes[kept]), kept
    if cache == "none" and not skip_bad:
        return FileStore(paths), np.arange(len(paths))
    images: list[np.ndarray] = []
    readable: list[int] = []
    for i, image in enumerate(_decoded(paths, skip_bad, f"reading {name}")):
        if image is not None:
            readable.append(i)
            images += [image] if cache == "ram" else []
    if cache == "none":
        return FileStore([paths[i] for i in readable]), np.array(readable, dtype=np.int64)
    log.info("%s: %d decoded images kept in memory, %.1f GiB", name, len(images), sum(image.nbytes for image in images) / GIB)
    same = len({image.shape for image in images}) == 1
    return (ArrayStore(np.stack(images)) if same else RamStore(images)), np.array(readable, dtype=np.int64)


def available_memory() -> int | None:
    """Bytes that can be had without swapping: the machine's, or less if this process's group is limited. None: unknown."""
    found = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
        found.append(int(line.split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        found.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(0, min(found)) if found else None


def _choose(paths: Sequence[Path], name: str, processes: int) -> Cache:
    """"ram" if the decoded images of all processes fit in half of the free memory, else "none"."""
    free, needed = available_memory(), _decoded_bytes(paths) * processes
    fits = free is not None and needed <= SHARE * free
    chosen: Cache = "ram" if fits else "none"
    known = f"{free / GIB:.1f} GiB" if free is not None else "an unknown amount"
    log.info("%s: cache %s; decoded images take about %.1f GiB in %d process(es), %s of memory is free%s", name, chosen, needed / GIB,
             processes, known, "" if fits else '; "cache": "disk" would keep them in a file')
    return chosen


def _decoded_bytes(paths: Sequence[Path]) -> int:
    """Estimated from the headers of some images; unreadable ones are left to the decoder to report."""
    total, read = 0, 0
    for i in np.linspace(0, len(paths) - 1, min(SAMPLE, len(paths))).astype(int):
        with contextlib.suppress(Exception), Image.open(paths[i]) as image:
            total, read = total + 3 * image.width * image.height, read + 1
    return total * len(paths) // max(1, read)


def _decoded(paths: Sequence[Path], skip_bad: bool, what: str) -> Iterator[np.ndarray | None]:
    """Every image (H, W, 3) in order, decoded by threads; None for an unreadable one with `skip_bad`."""
    bad: list[str] = []
    bar = tqdm(total=len(paths), desc=what, unit="image", disable=not shows_bars(), leave=False)
    with bar, ThreadPoolExecutor(max_workers=available_cores()) as threads:
        for start in range(0, len(paths), CHUNK):
            for result in threads.map(_try_read, paths[start:start + CHUNK]):
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


# On disk -----------------------------------------------------------------------------------------------------

def _disk_cache(paths: Sequence[Path], name: str, folder: Path, skip_bad: bool) -> tuple[np.ndarray, np.ndarray]:
    """(sizes (N, 2), pixels): of the cache file, made first if it is not there; another file if an image has changed."""
    stamps = [(str(path), stat.st_size, stat.st_mtime_ns) for path in paths for stat in [path.stat()]]
    key = hashlib.blake2b(repr((stamps, skip_bad)).encode(), digest_size=8).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    stem = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)[:80]
    file, sizes_file = folder / f"{stem}-{key}.bin", folder / f"{stem}-{key}.npy"
    with _locked(folder / f"{stem}-{key}.lock"):  # of several processes one decodes, the others wait
        if not (file.is_file() and sizes_file.is_file()):
            _write_cache(paths, name, file, sizes_file, skip_bad)
    sizes = np.load(sizes_file, allow_pickle=False)
    pixels = np.memmap(file, dtype=np.uint8, mode="c") if file.stat().st_size else np.empty(0, np.uint8)
    if len(sizes) != len(paths) or len(pixels) != 3 * sizes.prod(1).sum():
        raise UserError(f"cache file {file} is damaged; delete it and its .npy, they are made again")
    log.info("%s: decoded images in %s, %.1f GiB", name, file, len(pixels) / GIB)
    return sizes, pixels


def _write_cache(paths: Sequence[Path], name: str, file: Path, sizes_file: Path, skip_bad: bool) -> None:
    sizes = np.zeros((len(paths), 2), dtype=np.int64)
    part = file.with_suffix(f".{os.getpid()}.part")
    try:
        with open(part, "wb") as out:
            for i, image in enumerate(_decoded(paths, skip_bad, f"caching {name}")):
                if image is not None:
                    out.write(image.tobytes())
                    sizes[i] = image.shape[:2]
        np.save(sizes_file, sizes)
        os.replace(part, file)
    except OSError as error:
        raise UserError(f"cache file {file} cannot be written ({error.strerror}); free some disk, or set \"cache\" to \"ram\" or "
                        '"none"') from None
    finally:
        part.unlink(missing_ok=True)


def _one_size(pixels: np.ndarray, sizes: np.ndarray) -> ImageStore:
    if len(np.unique(sizes, axis=0)) == 1:
        height, width = sizes[0]
        return ArrayStore(pixels.reshape(-1, height, width, 3))
    return DiskStore(pixels, sizes)


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold `file` against other processes of this machine; the system lets go of it when a process dies."""
    try:
        import fcntl
    except ImportError:  # Windows: two processes would each write a file of their own, one after another takes the name
        yield
        return
    with open(file, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
