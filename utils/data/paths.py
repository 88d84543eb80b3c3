"""Many file names in little memory: 1.28 million entries of an ImageNet-sized set take about 40 MiB instead of 400.

A list of Path objects costs 300 bytes an entry, and worker processes that are forked from this one copy it page by page,
because reading an object changes its reference count. Here the text lies in numpy arrays, and a Path is made when asked for.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

TAKEN = 2**16  # texts copied at a time


class Texts:
    """Byte strings one after another in one array."""

    def __init__(self, data: np.ndarray, ends: np.ndarray) -> None:
        self.data = data  # (bytes,) uint8
        self.ends = ends  # (n,) int64

    @classmethod
    def of(cls, texts: Iterable[bytes]) -> Texts:
        data, ends = bytearray(), array("q")
        for text in texts:
            data += text
            ends.append(len(data))
        return cls(np.frombuffer(bytes(data), dtype=np.uint8), np.array(ends, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[bytes]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> bytes:
        start = self.ends[i - 1] if i else 0
        return self.data[start:self.ends[i]].tobytes()

    def take(self, positions: np.ndarray) -> Texts:
        """The texts at `positions` (n,) int64 from 0 up, in that order."""
        starts = np.where(positions > 0, self.ends[positions - 1], 0)
        lengths = self.ends[positions] - starts
        ends = np.cumsum(lengths)
        data = np.empty(ends[-1] if len(ends) else 0, dtype=np.uint8)
        for first in range(0, len(positions), TAKEN):  # the positions of all bytes at once would take eight times the bytes, twice
            part = slice(first, first + TAKEN)
            before = ends[part] - lengths[part]  # bytes in front of each text, in the result
            target = np.arange(before[0], ends[part][-1])
            data[target] = self.data[target + np.repeat(starts[part] - before, lengths[part])]
        return Texts(data, ends)


class Paths(Sequence[Path]):
    """A sequence of paths; folders are kept once. An index gives a Path, a slice or an array of positions gives Paths."""

    def __init__(self, folders: Texts, folder_of: np.ndarray, names: Texts) -> None:
        self.folders = folders  # without doubles
        self.folder_of = folder_of  # (N,) int32
        self.names = names  # N file names
        assert len(folder_of) == len(names), f"{len(folder_of)} folders, {len(names)} names"

    @classmethod
    def of(cls, paths: Iterable[Path | str]) -> Paths:
        builder = PathsBuilder()
        for path in paths:
            builder.add(*os.path.split(path))
        return builder.done()

    @classmethod
    def join(cls, parts: Sequence[Paths]) -> Paths:
        """The paths of all `parts`, one part after another."""
        folders: dict[bytes, int] = {}
        folder_of = []
        for part in parts:
            numbers = [folders.setdefault(folder, len(folders)) for folder in part.folders]
            folder_of.append(np.array(numbers, dtype=np.int32)[part.folder_of])
        starts = np.cumsum([0, *(len(part.names.data) for part in parts)])
        names = Texts(np.concatenate([part.names.data for part in parts]),
                      np.concatenate([part.names.ends + start for part, start in zip(parts, starts, strict=False)]))
        return cls(Texts.of(folders), np.concatenate(folder_of), names)

    def __len__(self) -> int:
        return len(self.folder_of)

    @overload
    def __getitem__(self, at: int) -> Path: ...

    @overload
    def __getitem__(self, at: slice | np.ndarray) -> Paths: ...

    def __getitem__(self, at: int | slice | np.ndarray) -> Path | Paths:
        if isinstance(at, (int, np.integer)):
            return Path(self.text(range(len(self))[at]))
        whole = isinstance(at, np.ndarray) and at.dtype.kind == "i" and (not len(at) or (at.min() >= 0 and at.max() < len(self)))
        positions = at if whole else np.arange(len(self))[at]
        return Paths(self.folders, self.folder_of[positions], self.names.take(positions))

    def __iter__(self) -> Iterator[Path]:
        return (Path(self.text(i)) for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Paths) and len(self) == len(other) and all(
            self.text(i) == other.text(i) for i in range(len(self)))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Paths({len(self)} files{f', the first {self[0]}' if len(self) else ''})"

    def text(self, i: int) -> str:
        """Path number `i` (from 0) as text, without the cost of a Path."""
        return os.fsdecode(os.path.join(self.folders[self.folder_of[i]], self.names[i]))

    def raw(self) -> Iterator[bytes]:
        """All paths as the system takes them, at a third of the cost of text."""
        folders, names = list(self.folders), self.names.data.tobytes()
        start = 0
        for folder, end in zip(self.folder_of.tolist(), self.names.ends.tolist(), strict=True):
            yield os.path.join(folders[folder], names[start:end])
            start = end

    @property
    def nbytes(self) -> int:
        """Bytes that the arrays take."""
        parts = (self.folders.data, self.folders.ends, self.folder_of, self.names.data, self.names.ends)
        return sum(part.nbytes for part in parts)


class PathsBuilder:
    """Takes paths one by one, as a folder and a name in it."""

    def __init__(self) -> None:
        self._folders: dict[str, int] = {}
        self._folder_of = array("i")
        self._data, self._ends = bytearray(), array("q")

    def add(self, folder: str, name: str) -> None:
        self._folder_of.append(self._folders.setdefault(folder, len(self._folders)))
        self._data += os.fsencode(name)
        self._ends.append(len(self._data))

    def __len__(self) -> int:
        return len(self._folder_of)

    def done(self) -> Paths:
        names = Texts(np.frombuffer(bytes(self._data), dtype=np.uint8), np.array(self._ends, dtype=np.int64))
        return Paths(Texts.of(map(os.fsencode, self._folders)), np.array(self._folder_of, dtype=np.int32), names)
