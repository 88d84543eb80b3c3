"""What a reader passes over or takes otherwise than written, said once per data set: how many, and the first."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

log = logging.getLogger("slca.data")

SHOWN = 5  # problems that one message lists
_told: ContextVar[bool] = ContextVar("told", default=False)  # the same command reads the same set again: its notes have been told


def tell(where: str, notes: Sequence[str]) -> tuple[str, ...]:
    """Log the notes of the data set `where` as warnings. Returns them as text that can be written anywhere (names that are not UTF-8)."""
    notes = tuple(note.encode("utf-8", "backslashreplace").decode() for note in notes)
    if not _told.get():
        for note in notes:
            log.warning("%s: %s", where, note)
    return notes


@contextmanager
def told_before() -> Iterator[None]:
    """Inside, a data set is read once more by a command that has told its notes already."""
    token = _told.set(True)
    try:
        yield
    finally:
        _told.reset(token)


def together(problems: Sequence[str]) -> str:
    """Several problems as one sentence, so that all can be mended at once."""
    more = f"; and {len(problems) - SHOWN} more of this sort" if len(problems) > SHOWN else ""
    return "; ".join(problems[:SHOWN]) + more


def some(items: Sequence[object], limit: int = 8) -> str:
    """The first `limit` items, and how many there are."""
    return ", ".join(map(str, items[:limit])) + (f", ... ({len(items)} in all)" if len(items) > limit else "")


@dataclass
class _Kind:
    count: int = 0
    first: str = ""
    suffixes: Counter[str] = field(default_factory=Counter)


class PassedOver:
    """Counts what a walk through folders leaves out.

    Args:
        root: names in the notes are relative to it.
    """

    OTHER, HIDDEN, DANGLING, LOOP, SPECIAL, BESIDE = "other", "hidden", "dangling", "loop", "special", "beside"
    WORDS: ClassVar = {  # of one, of several
        OTHER: ("file without an image's ending", "files without an image's ending"),
        HIDDEN: ("hidden or system file or folder", "hidden or system files or folders"),
        DANGLING: ("link that leads nowhere", "links that lead nowhere"),
        LOOP: ("link to a folder that is read already", "links to folders that are read already"),
        SPECIAL: ("pipe, socket or device", "pipes, sockets or devices"),
        BESIDE: ("image beside the class folders", "images beside the class folders"),
    }

    def __init__(self, root: Path) -> None:
        self.root = os.path.abspath(root)
        self._kinds: dict[str, _Kind] = {}

    def add(self, kind: str, path: str) -> None:
        found = self._kinds.setdefault(kind, _Kind())
        found.count += 1
        found.first = found.first or path
        if kind == self.OTHER:
            found.suffixes[os.path.splitext(path)[1].lower() or "none"] += 1

    def suffixes(self) -> Counter[str]:
        """Endings of the files that are no images by their name."""
        return self._kinds[self.OTHER].suffixes if self.OTHER in self._kinds else Counter()

    def include(self, other: PassedOver) -> None:
        """Add what another walk left out."""
        for kind, found in other._kinds.items():
            mine = self._kinds.setdefault(kind, _Kind())
            mine.count += found.count
            mine.first = mine.first or found.first
            mine.suffixes += found.suffixes

    def notes(self) -> list[str]:
        """One sentence, or none if nothing was passed over."""
        if not self._kinds:
            return []
        parts = [f"{found.count} {self.WORDS[kind][found.count > 1]}{_endings(found.suffixes)}, "
                 f"{'the first is ' if found.count > 1 else ''}{os.path.relpath(found.first, self.root)}"
                 for kind, found in self._kinds.items()]
        hint = "; save them as png or jpg if they are images" if self.OTHER in self._kinds else ""
        return [f"passed over under {self.root}/: {'; '.join(parts)}{hint}"]


def _endings(suffixes: Counter[str]) -> str:
    return f" ({some([f'{count} {suffix}' for suffix, count in suffixes.most_common()], SHOWN)})" if suffixes else ""
