"""What a reader of an official layout gives, and what readers share.

A reader sees names and the small annotation files through `Files`, so that the same code serves a folder that is already
unpacked (loading) and an archive (utils/data/prepare.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

import numpy as np

from utils.data.annotations import plain_lines
from utils.data.index import note_place
from utils.data.paths import Paths
from utils.data.types import ImageSet, Splits
from utils.data.walk import files_below, is_hidden, is_image
from utils.errors import UserError

SPLIT_SEED = 0  # of the splits that are ours
TEST_FRACTION = 0.2


class Entry(NamedTuple):
    """One image of a benchmark."""

    path: str  # as `Files` names it
    label: str  # class name; classes are numbered in sorted order
    test: bool
    domain: str = ""  # of sets with domains


class Files(Protocol):
    """The files of a folder or an archive; names are relative, with forward slashes."""

    def names(self) -> list[str]: ...

    def read(self, name: str) -> bytes: ...


EntryReader = Callable[[Files], "list[Entry]"]


@dataclass(frozen=True)
class FolderFiles:
    """Files under a folder on disk."""

    root: Path

    @cached_property
    def _names(self) -> list[str]:
        return files_below(self.root)

    def names(self) -> list[str]:
        return self._names

    def read(self, name: str) -> bytes:
        note_place(self.root / name)
        return (self.root / name).read_bytes()


@dataclass(frozen=True)
class SomeFiles:
    """Some of the files of a source."""

    files: Files
    kept: list[str] = field(default_factory=list)

    def names(self) -> list[str]:
        return self.kept

    def read(self, name: str) -> bytes:
        return self.files.read(name)


def entry_sets(entries: Sequence[Entry], folder: Path, domains: Sequence[str] = ()) -> Splits:
    """Entries with paths under `folder` as training set, test set and class names; domains in the order of `domains`."""
    names = sorted({entry.label for entry in entries})
    number = {name: i for i, name in enumerate(names)}
    sets = []
    for test in (False, True):
        part = [entry for entry in entries if entry.test == test]
        sets.append(ImageSet(Paths.of(folder / entry.path for entry in part), np.array([number[e.label] for e in part], dtype=np.int64),
                             np.array([domains.index(e.domain) for e in part], dtype=np.int64) if domains else None))
    return sets[0], sets[1], names


# Finding files -----------------------------------------------------------------------------------------------

def class_of(path: str) -> str:
    """The folder that a file lies in."""
    return PurePosixPath(path).parent.name


def class_folder_images(names: Sequence[str], what: str) -> list[str]:
    """All images in folders, sorted. Raises UserError if there is none."""
    images = sorted(name for name in names if is_image(name) and "/" in name and not any(map(is_hidden, PurePosixPath(name).parts)))
    if not images:
        raise UserError(f"{what}: no images in class folders found; expected <class>/<image>")
    return images


def one_file(names: Sequence[str], file: str, what: str, folder: str = "") -> str:
    """The name whose last part is `file` (in a folder of this name, if one is given); the one nearest to the top if there are several."""
    found = [name for name in names if PurePosixPath(name).name == file and (not folder or class_of(name) == folder)]
    if not found:
        missing = f"{folder}/{file}" if folder else file
        raise UserError(f"{what}: the file {missing} is missing; expected the official layout (see docs/datasets.md)")
    return min(found, key=lambda name: name.count("/"))


def above(name: str, levels: int = 1) -> str:
    """The folder `levels` above a file, "" or with a slash at its end."""
    parts = PurePosixPath(name).parts[:-levels]
    return "/".join(parts) + "/" if parts else ""


def lines_of(files: Files, name: str) -> list[str]:
    """The lines of a text file that are not empty. Raises UserError."""
    if name not in files.names():
        raise UserError(f"the file {name} is missing; expected the official layout (see docs/datasets.md)")
    return plain_lines(name, files.read(name))


def columns_of(files: Files, name: str, count: int) -> list[list[str]]:
    """The lines of a text file cut into `count` columns; the last one may hold spaces. Raises UserError."""
    rows = [line.split(maxsplit=count - 1) for line in lines_of(files, name)]
    for number, row in enumerate(rows, start=1):
        if len(row) < count:
            raise UserError(f"{name}, line {number}: got {' '.join(row)!r}, allowed: {count} columns with a space between them; get the "
                            "file anew from its source")
    return rows


def json_of(files: Files, name: str) -> Any:
    """A JSON file. Raises UserError."""
    try:
        return json.loads(files.read(name))
    except (ValueError, RecursionError):
        raise UserError(f"{name} is no JSON file; get the file anew from its source") from None


def matlab_of(files: Files, name: str, key: str) -> np.ndarray:
    """One vector of whole numbers of a MATLAB file, (n,) int64. Raises UserError."""
    import io

    from scipy.io import loadmat
    try:
        content = loadmat(io.BytesIO(files.read(name)), squeeze_me=True)
        return np.atleast_1d(content[key]).astype(np.int64)
    except UserError:
        raise
    except Exception as error:  # scipy raises many kinds for a damaged file; KeyError: another file
        raise UserError(f"{name} cannot be read as a MATLAB file with {key!r} ({error}); get the file anew from its source") from None


def present(entries: list[Entry], names: Iterable[str]) -> list[Entry]:
    """The entries, if all of them are among `names`. Raises UserError."""
    there = set(names)
    missing = [entry.path for entry in entries if entry.path not in there]
    if missing:
        raise UserError(f"{len(missing)} of {len(entries)} listed images are missing, the first is {missing[0]}; is the archive "
                        "complete and unpacked?")
    return entries


# Splits that are ours ----------------------------------------------------------------------------------------

def split_per_class(paths: Sequence[str], fraction: float = TEST_FRACTION, label: Callable[[str], str] = class_of) -> list[Entry]:
    """`fraction` of each class's images for testing, by one permutation per class of its paths in sorted order."""
    by_class: dict[str, list[str]] = {}
    for path in sorted(paths):
        by_class.setdefault(label(path), []).append(path)
    entries = []
    for number, (name, own) in enumerate(sorted(by_class.items())):
        order = np.random.default_rng([SPLIT_SEED, number]).permutation(len(own))
        held_out = set(order[:round(fraction * len(own))].tolist())
        entries += [Entry(path, name, i in held_out) for i, path in enumerate(own)]
    return entries


def split_of_all(paths: Sequence[str], fraction: float = TEST_FRACTION) -> list[Entry]:
    """`fraction` of all images for testing, by one permutation of the sorted paths; a class may lack test images."""
    images = sorted(paths)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(images))
    is_test = np.ones(len(images), dtype=bool)
    is_test[order[:len(images) - round(fraction * len(images))]] = False
    return [Entry(path, class_of(path), bool(test)) for path, test in zip(images, is_test, strict=True)]
