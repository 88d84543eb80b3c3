"""Images of classes that are still to be learned, as the page's form collects them, in one folder on the server.

    FOLDER/waiting/<class>/0001.jpg     collected, not learned yet
    FOLDER/task_1/<class>/...           what was handed to the first `extend`; the new run's config names it
    FOLDER/known/<class>/...            came while their class was being learned: for `main.py extend --update`
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection as Names
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

from models.serve.uploads import Refused
from utils.data.walk import same_spelling
from utils.files import write_atomic

MOST_IMAGES = 5000  # of one class
MOST_BYTES = 2**31  # of all that waits


class Collection:
    """The images that wait in a folder, which is made when the first one comes.

    Args:
        folder: that the person who started the server named.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.waiting = self.folder / "waiting"
        self._lock = threading.Lock()

    def counts(self) -> dict[str, int]:
        """Class -> images that wait."""
        if not self.waiting.is_dir():
            return {}
        return {place.name: len(_files(place)) for place in sorted(self.waiting.iterdir()) if place.is_dir()}

    def add(self, name: str, files: Sequence[tuple[bytes, str]], known: Names[str]) -> None:
        """Write images of a class, each as its bytes and a file's suffix.

        Args:
            name: of the class, as `class_folder_name` lets through.
            known: classes that the model has learned.

        Raises:
            Refused: it is known already, or there are too many images.
        """
        if same_spelling(name) in map(same_spelling, known):
            raise Refused(409, f"class: {name!r} is known already; give new images to a new class")
        with self._lock:
            place = self.waiting / name
            there = _files(place)
            if len(there) + len(files) > MOST_IMAGES:
                raise Refused(413, f"{name} has {len(there)} images, allowed: {MOST_IMAGES}; let the model learn them first")
            waiting = [file for other in self.counts() for file in _files(self.waiting / other)]
            if sum(file.stat().st_size for file in waiting) + sum(len(data) for data, _ in files) > MOST_BYTES:
                raise Refused(413, f"the images that wait in {self.waiting} would take more than {MOST_BYTES // 2**30} GiB; let the model "
                                   "learn them first")
            first = 1 + max((int(file.stem) for file in there if file.stem.isdecimal()), default=0)
            for number, (data, suffix) in enumerate(files, start=first):
                write_atomic(place / f"{number:04d}{suffix}", data)

    def hand_over(self, known: Names[str]) -> Path:
        """Move what waits to a folder of its own, with one sub-folder per class.

        Args:
            known: classes that the model has learned, perhaps since their images came; these are set aside.

        Raises:
            Refused: nothing waits, or known classes alone.
        """
        with self._lock:
            late = [name for name in self.counts() if name in known]
            for name in late:
                _move(self.waiting / name, self.folder / "known" / name)
            if not self.counts():
                raise Refused(409, f"{', '.join(late)}: known by now, so {'its' if len(late) == 1 else 'their'} later images lie in "
                              f"{self.folder / 'known'}; python main.py extend RUN --update --data takes them" if late else
                              "there are no images to learn from; collect some of a new class first")
            place = next(place for place in (self.folder / f"task_{n}" for n in count(1)) if not os.path.lexists(place))
            return self.waiting.rename(place)

    def take_back(self, place: Path) -> None:
        """Let the images of `place` wait again, beside those that came meanwhile; nothing of them was learned."""
        with self._lock:
            for folder in sorted(each for each in place.iterdir() if each.is_dir()):
                _move(folder, self.waiting / folder.name)
            _remove_if_empty(place)


def _move(folder: Path, target: Path) -> None:
    """Move the images of a folder beside those of another."""
    target.mkdir(parents=True, exist_ok=True)
    numbers = count(1 + len(_files(target)))
    for file in _files(folder):
        file.rename(next(new for new in (target / f"{n:04d}{file.suffix}" for n in numbers) if not new.exists()))
    _remove_if_empty(folder)


def _remove_if_empty(place: Path) -> None:
    """Remove a folder in which nothing else was put, such as the hidden files of a file browser."""
    with suppress(OSError):
        place.rmdir()


def _files(place: Path) -> list[Path]:
    """The images in a folder; none where there is no such folder, or it is a link that may lead anywhere."""
    if place.is_symlink() or not place.is_dir():
        return []
    return sorted(file for file in place.iterdir() if not file.name.startswith("."))
