"""The list of a large data set's files, kept beside it and checked before it is used.

Listing 1.3 million files takes a minute or more, most of all on a network drive. The list is kept under <data_root>/cache with the
time of last change of every folder and list file that was looked at: adding, removing or renaming a file changes its folder's
time, so one look at each folder (some thousand) says whether the list is still true. It holds names alone, never code.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path

import numpy as np

from utils.data.duplicates import is_first_process
from utils.data.paths import Paths, Texts
from utils.data.types import ImageSet, Splits
from utils.files import replacing

log = logging.getLogger("slca.data")

SMALLEST = 50_000  # images; fewer are listed in a second
SETTLED = 2_000_000_000  # nanoseconds; a folder that changed within them may change again without another time
VERSION = 1  # of the file
Places = dict[str, tuple[int, int]]  # absolute path -> time of last change in nanoseconds, and bytes (0 for a folder)
_seen: ContextVar[Places | None] = ContextVar("places", default=None)


def note_place(path: str | Path) -> None:
    """A folder or file that a list of images depends on; called before it is read."""
    places = _seen.get()
    if places is not None:
        text = os.path.abspath(path)
        if text not in places:
            places[text] = _state(text)


@contextmanager
def noting_places() -> Iterator[Places]:
    """Inside, all that is looked at for a list of images is noted."""
    places: Places = {}
    token = _seen.set(places)
    try:
        yield places
    finally:
        _seen.reset(token)


def indexed(folder: Path, cache: Path, key: str, read: Callable[[], Splits]) -> Splits:
    """What `read` finds under `folder`; the list of a large set is kept in `cache` and taken from there as long as it is true.

    Args:
        key: whatever else decides what `read` finds (the reader's name, the order of domains).
    """
    words = f"{VERSION} {key} {folder} {os.path.abspath(folder)}"  # a list of relative paths is of use in this working folder alone
    identity = hashlib.blake2b(words.encode(errors="surrogateescape"), digest_size=8).hexdigest()
    file = cache / f"index-{folder.name}-{identity}.npz"
    kept = _kept(file)
    if kept is not None:
        return kept
    begin = time.time_ns()
    with noting_places() as places:
        note_place(folder)
        splits = read()
    settled = max(changed for changed, _ in places.values()) + SETTLED < begin  # else the next start keeps it
    if settled and len(splits[0]) + len(splits[1]) >= SMALLEST and is_first_process():
        _keep(file, splits, places)
    return splits


def _state(path: str) -> tuple[int, int]:
    """Time of last change and size; zeros where there is nothing."""
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_mtime_ns, 0 if os.path.isdir(path) else found.st_size


# The file ----------------------------------------------------------------------------------------------------

def _keep(file: Path, splits: Splits, places: Places) -> None:
    """Write the list; a place that cannot be written only loses the file."""
    train, test, names = splits
    arrays = {"facts": _text(json.dumps({"names": names, "notes": train.notes, "sizes": [size for _, size in places.values()]})),
              "changed": np.array([changed for changed, _ in places.values()], dtype=np.int64), **_texts("places", Texts.of(
                  os.fsencode(path) for path in places))}
    for part, images in (("train", train), ("test", test)):
        if not isinstance(images.images, Paths):
            return
        arrays |= {f"{part}_labels": images.labels.astype(np.int32), f"{part}_folder_of": images.images.folder_of,
                   **_texts(f"{part}_folders", images.images.folders), **_texts(f"{part}_names", images.images.names)}
        if images.domains is not None:
            arrays[f"{part}_domains"] = images.domains.astype(np.int32)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary, open(temporary, "wb") as out:
            np.savez(out, **arrays)
        log.info("%s: kept the list of %d images; it is used as long as none of %d folders and files changes", file,
                 len(train) + len(test), len(places))
    except OSError as error:
        log.warning("%s cannot be written (%s); the images will be listed again at the next start", file, error)


def _kept(file: Path) -> Splits | None:
    """The kept list, if there is one and no folder has changed since."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            facts = json.loads(arrays["facts"].tobytes())
            places = _texts_of(arrays, "places")
            for path, changed, size in zip(places, arrays["changed"].tolist(), facts["sizes"], strict=True):
                if _state(os.fsdecode(path)) != (changed, size):
                    log.info("%s has changed: its data set is listed anew", os.fsdecode(path))
                    return None
            train, test = (_image_set(arrays, part) for part in ("train", "test"))
            return replace(train, notes=tuple(map(str, facts["notes"]))), test, [str(name) for name in facts["names"]]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, IndexError, AssertionError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s cannot be read (%s); the images are listed anew", file, error)
        return None


def _image_set(arrays: np.lib.npyio.NpzFile, part: str) -> ImageSet:
    paths = Paths(_texts_of(arrays, f"{part}_folders"), arrays[f"{part}_folder_of"], _texts_of(arrays, f"{part}_names"))
    domains = arrays[f"{part}_domains"].astype(np.int64) if f"{part}_domains" in arrays else None
    return ImageSet(paths, arrays[f"{part}_labels"].astype(np.int64), domains)


def _text(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(errors="surrogateescape"), dtype=np.uint8)


def _texts(name: str, texts: Texts) -> dict[str, np.ndarray]:
    return {f"{name}_data": texts.data, f"{name}_ends": texts.ends}


def _texts_of(arrays: np.lib.npyio.NpzFile, name: str) -> Texts:
    return Texts(arrays[f"{name}_data"], arrays[f"{name}_ends"])
