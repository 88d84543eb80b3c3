"""What a run remembers of its data, so that a resumed one notices when they have changed.

Per split and class: the number of images, and a digest of all file names (or of pixels of some images, for arrays) and of the
sizes of some files; where there are not too many files to ask also of all their sizes and of how some begin. Where the files
lie plays no part, so a data set may be moved.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from utils.data.paths import Paths
from utils.data.types import ImageSet, members_by_group
from utils.errors import UserError
from utils.images.store import NotRegular, without_waiting
from utils.machine.cores import available_cores

SAMPLED = 4  # files per class that are looked into, or images whose pixels are: evenly spaced over the class
MANY = 100_000  # files of a split, beyond which only the sizes of the sampled ones are asked for
BEGINNING = 2**16  # bytes of a sampled file
IMAGE_DIGEST = 16  # bytes by which one image is told from others
SHOWN = 5  # differences that a message names

Fingerprint = Mapping[str, Mapping[str, str]]  # split -> class name -> "12 images, 3f0a...[, 77b1...]"


def fingerprint(train: ImageSet, test: ImageSet, names: Sequence[str]) -> Fingerprint:
    """One entry per split and class that has images, classes in the data set's own order."""
    return {split: {names[int(images.labels[members[0]])]: _entry(images, members) for members in members_by_group(images.labels)}
            for split, images in (("train", train), ("test", test))}


def digest(found: Fingerprint) -> str:
    """One word for all images, to compare runs by; of what runs of older versions have too."""
    known = {split: {name: ", ".join(entry.split(", ")[:2]) for name, entry in entries.items()} for split, entries in found.items()}
    return hashlib.blake2b(json.dumps(known, sort_keys=True).encode(), digest_size=8).hexdigest()


def changes(before: Fingerprint, now: Fingerprint) -> list[str]:
    """What differs, in words: classes that are gone or new, then images; empty where nothing does."""
    old, new = (list(dict.fromkeys(name for split in found.values() for name in split)) for found in (before, now))
    told = [f"class {name!r} is gone" for name in old if name not in new] + [f"class {name!r} is new" for name in new if name not in old]
    for split in before:
        for name in before[split]:
            entry, entry_now = before[split][name], now.get(split, {}).get(name)
            if name in new and not _alike(entry, entry_now):
                told.append(f"class {name!r} had {_count(entry)} in {split}, has {_count(entry_now)}"
                            if _count(entry) != _count(entry_now) else f"class {name!r} has other images in {split}")
    if not told and old != new:
        told.append("the classes are in another order")
    return told if len(told) <= SHOWN else [*told[:SHOWN], f"and {len(told) - SHOWN} more differences"]


def image_digests(images: ImageSet) -> np.ndarray:
    """(N, 16) uint8 BLAKE2b of each image: of its pixels and their shape, or of its whole file. Raises UserError: no such file."""
    if isinstance(images.images, np.ndarray):
        shape = repr(images.images.shape[1:]).encode()
        found = [hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=IMAGE_DIGEST, person=shape[:16]).digest()
                 for image in images.images]
    else:
        with ThreadPoolExecutor(max_workers=available_cores()) as threads:
            found = list(threads.map(_file_digest, images.images))
    return np.frombuffer(b"".join(found), dtype=np.uint8).reshape(len(images), IMAGE_DIGEST)


def _file_digest(path: Path) -> bytes:
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=IMAGE_DIGEST).digest()
    except OSError as error:
        raise UserError(f"image {path} cannot be read ({error.strerror or error}); was it moved or deleted?") from None


def _entry(images: ImageSet, members: np.ndarray) -> str:
    digest = hashlib.blake2b(digest_size=8)
    sample = members[np.linspace(0, len(members) - 1, min(SAMPLED, len(members))).astype(np.int64)]
    if isinstance(images.images, np.ndarray):
        digest.update(repr(images.images.shape[1:]).encode())
        digest.update(np.ascontiguousarray(images.images[sample]).tobytes())
    else:
        digest.update(images.images[members].names.data.tobytes())
        digest.update(repr([_size(images.images.text(int(i))) for i in sample]).encode())
    if images.domains is not None:
        digest.update(np.ascontiguousarray(images.domains[members]).tobytes())
    more = "" if isinstance(images.images, np.ndarray) or len(images) > MANY else f", {_content(images.images, members, sample)}"
    return f"{len(members)} images, {digest.hexdigest()}{more}"


def _content(paths: Paths, members: np.ndarray, sample: np.ndarray) -> str:
    """Digest of the sizes of the files `members` and of how those of `sample` begin."""
    digest = hashlib.blake2b(repr([_size(paths.text(int(i))) for i in members]).encode(), digest_size=8)
    for i in sample:
        with suppress(OSError, NotRegular), open(paths.text(int(i)), "rb", opener=without_waiting) as file:  # reading the image will say it
            digest.update(file.read(BEGINNING))
    return digest.hexdigest()


def _size(path: str) -> int:
    """Bytes of a file; -1 where it cannot be told, which reading the image will say."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def _alike(before: str | None, now: str | None) -> bool:
    """Whether two entries are of the same images; one of an older version, or of more files, has a digest less."""
    if before is None or now is None:
        return before is now
    return all(a == b for a, b in zip(before.split(", "), now.split(", "), strict=False))


def _count(entry: str | None) -> str:
    return "no images" if entry is None else entry.partition(",")[0]
