"""Where a path of the config is: `~` is the home folder; relative paths are tried in several folders, in a fixed order."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.config import DatasetSpec
from utils.data.walk import spelled_on_disk
from utils.files import PROJECT


@dataclass(frozen=True)
class Place:
    """What became of a path that a config names."""

    given: str
    path: Path  # the first place where something is, else the first that was tried
    tried: tuple[Path, ...]  # absolute
    others: tuple[Path, ...] = ()  # further places where something is

    @property
    def exists(self) -> bool:
        return os.path.exists(self.path)

    @property
    def missing(self) -> str:
        """"'photos' is not there; tried /home/me/photos, /home/me/slca/photos"."""
        return f"{self.given!r} does not exist; tried {', '.join(map(str, self.tried))}"

    def notes(self, key: str) -> list[str]:
        """A note if the path is to be found in several places."""
        if not self.others:
            return []
        return [f'"{key}": {self.given!r} is taken from {os.path.abspath(self.path)}; there is also {self.others[0]}']


def find_place(given: str, first: Sequence[Path] = ()) -> Place:
    """`given` in the folders `first`, then in the working folder, then in the project's.

    A path that is spelled otherwise in Unicode on the disk is found too.
    """
    text = os.path.expanduser(given)
    candidates = [Path(text)] if os.path.isabs(text) else [*(base / text for base in first), Path(text), PROJECT / text]
    tried = tuple(dict.fromkeys(Path(os.path.abspath(path)) for path in candidates))
    found = [place for place in map(spelled_on_disk, candidates) if place is not None]
    others = [place for place in found if not place.samefile(found[0])]
    return Place(given, found[0] if found else candidates[0], tried, tuple(Path(os.path.abspath(place)) for place in others))


@dataclass(frozen=True)
class Sources:
    """Where the description's paths are."""

    root: Place | None
    train: Place | None  # folder or list file
    test: Place | None

    @classmethod
    def of(cls, spec: DatasetSpec) -> Sources:
        """`train` and `test` are looked for under `root` first."""
        root = find_place(spec.root) if spec.root else None
        first = [root.path] if root is not None and os.path.isdir(root.path) else []
        train, test = (find_place(given, first) if given else None for given in (spec.train, spec.test))
        return cls(root, train, test)

    @property
    def nothing_there(self) -> bool:
        """None of the places that the config names exists: the data are not on this machine."""
        named = [place for place in (self.root, self.train, self.test) if place is not None]
        return bool(named) and not any(place.exists for place in named)

    def notes(self) -> list[str]:
        return [note for key in ("train", "test") for place in [getattr(self, key)] if place is not None for note in place.notes(key)]


def home_expanded(folder: str | Path) -> Path:
    """`folder` with `~` as the home folder."""
    return Path(os.path.expanduser(folder))
