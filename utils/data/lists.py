"""Reader of list files: lines "path label"."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.config import SplitSpec
from utils.data.folders import label_limit, split_set, without_tests
from utils.data.index import note_place
from utils.data.labels import are_numbers
from utils.data.notes import together
from utils.data.paths import Paths, PathsBuilder
from utils.data.types import ImageSet, Splits
from utils.data.walk import is_file, is_regular, same_spelling
from utils.errors import UserError

NUMBER = re.compile(r"-?[0-9]{1,18}")  # a label that is a class number
SHOWN_LINES = 3  # wrong lines of a list that one message shows


@dataclass(frozen=True)
class Listed:
    """A list file as it is written."""

    paths: Paths
    labels: list[str]  # distinct, in order of appearance
    codes: np.ndarray  # (N,) int64: labels[codes[i]] is the label of image i
    notes: tuple[str, ...] = ()


def read_list_file(file: Path, root: Path, *, look: bool = True) -> Listed:
    """Lines "path label", paths relative to `root`; empty lines and lines that start with # are passed over.

    Args:
        look: check that every image is there; without, only the names are read.

    Raises:
        UserError: no such file, lines that are no pair, or images that do not exist, with the lines' numbers.
    """
    paths, codes, numbers, problems, looks = PathsBuilder(), [], {}, [], _Looks(root)
    for number, line in _lines(file):
        parts = line.rsplit(maxsplit=1)  # a path may hold spaces
        if len(parts) < 2:
            problems.append(f"line {number}: got {line!r}, allowed: a path and a label with a space between them")
            continue
        folder, name = os.path.split(os.path.join(root, parts[0]))
        found = looks.find(folder, name) if look else (folder, name)
        if isinstance(found, str):
            problems.append(f"line {number}: image {os.path.join(folder, name)} {found}")
            continue
        paths.add(*found)
        codes.append(numbers.setdefault(parts[1], len(numbers)))
    if problems:
        hint = f"; paths are relative to {os.path.abspath(root)}/" if any(" image " in problem for problem in problems) else ""
        more = f"; and {len(problems) - SHOWN_LINES} more lines" if len(problems) > SHOWN_LINES else ""
        raise UserError(f"{file}, {'; '.join(problems[:SHOWN_LINES])}{more}{hint}")
    if not codes:
        raise UserError(f"list file {file} names no image; it should hold one 'path label' pair per line")
    return Listed(paths.done(), list(numbers), np.array(codes, dtype=np.int64), tuple(looks.notes(file)))


def _lines(file: Path) -> list[tuple[int, str]]:
    """Numbered lines without the empty ones and comments. Raises UserError."""
    note_place(file)
    try:
        if file.exists() and not is_regular(file):
            raise UserError(f"list file {file} cannot be read (it is a {'folder' if file.is_dir() else 'pipe or device'}); it should hold "
                            "one 'path label' pair per line")
        with open(file, encoding="utf-8-sig") as lines:
            return [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip() and line.lstrip()[0] != "#"]
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise UserError(f"list file {file} cannot be read ({reason}); it should hold one 'path label' pair per line, saved "
                        "as UTF-8") from None


class _Looks:
    """Looks up listed images: one listing per folder instead of one look-up per image."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._there: dict[str, dict[str, bool]] = {}  # folder -> its entries, and whether each is a file
        self._spelled: list[str] = []  # found under another spelling, as written in the list
        self._turned: list[str] = []  # found with / for \

    def find(self, folder: str, name: str) -> tuple[str, str] | str:
        """(folder, name) on the disk, or what is wrong."""
        entries = self._entries(folder)
        if name in entries:
            return (folder, name) if entries[name] else "is no file"
        if "\\" in name:  # written on Windows
            turned = self.find(*os.path.split(os.path.join(folder, name.replace("\\", "/"))))
            if not isinstance(turned, str):
                self._turned.append(name)
                return turned
        if not (folder + name).isascii():
            here = self._spelled_folder(folder)
            other = here and next((e for e in self._entries(here) if same_spelling(e) == same_spelling(name)), None)
            if here and other and self._entries(here)[other]:
                self._spelled.append(name)
                return here, other
        return "does not exist"

    def notes(self, file: Path) -> list[str]:
        notes = []
        if self._spelled:
            notes.append(f"{len(self._spelled)} images of {file} are spelled otherwise in Unicode on the disk, the first is "
                         f"{self._spelled[0]} ({self._spelled[0]!a})")
        if self._turned:
            notes.append(f"{len(self._turned)} paths of {file} are read with / for \\, the first is {self._turned[0]}")
        return notes

    def _entries(self, folder: str) -> dict[str, bool]:
        if folder not in self._there:
            note_place(folder or ".")
            try:
                with os.scandir(folder or ".") as entries:
                    self._there[folder] = {entry.name: is_file(entry) for entry in entries}
            except (OSError, ValueError):  # not there, or no path at all: each of its images is told
                self._there[folder] = {}
        return self._there[folder]

    def _spelled_folder(self, folder: str) -> str | None:
        """`folder`, or the one that differs in its Unicode spelling alone."""
        if os.path.isdir(folder or "."):
            return folder
        above, name = os.path.split(folder)
        here = self._spelled_folder(above) if name else None
        other = None if here is None else next((e for e in self._entries(here) if same_spelling(e) == same_spelling(name)), None)
        return None if here is None or other is None else os.path.join(here, other)


def label_names(lists: Sequence[Listed], where: str) -> tuple[dict[str, int], list[str], list[str]]:
    """Number of each written label, the class names, and notes.

    Labels that are whole numbers keep their number, and a class is called after the folder that all its images are in;
    other labels are names, numbered in sorted order.

    Raises:
        UserError: a label below 0, or numbers so large that they cannot be class numbers.
    """
    labels = {label for listed in lists for label in listed.labels}
    numeric = {label for label in labels if NUMBER.fullmatch(label)}
    if numeric != labels:
        names = sorted(labels)
        notes = [f"the labels of {where} are names and numbers, so all are taken as names; the first that is no number is "
                 f"{min(labels - numeric)!r}"] if numeric else []
        return {name: i for i, name in enumerate(names)}, names, notes
    numbers = {label: int(label) for label in labels}
    lowest, highest = min(numbers.values()), max(numbers.values())
    limit = label_limit(sum(len(listed.codes) for listed in lists))
    if lowest < 0 or highest >= limit:
        raise UserError(f"{where}: got the label {lowest if lowest < 0 else highest}, allowed: class numbers from 0 to {limit - 1}, or "
                        "names")
    named = _folder_names(lists, numbers)
    return numbers, [named.get(i, str(i)) for i in range(highest + 1)], []


def _folder_names(lists: Sequence[Listed], numbers: dict[str, int]) -> dict[int, str]:
    """Class -> the name of the one folder that its images are in, if such names tell the classes apart."""
    folders: dict[int, set[str]] = {}
    for listed in lists:
        parents = [Path(os.fsdecode(folder)).name for folder in listed.paths.folders]
        for pair in np.unique(listed.codes * len(parents) + listed.paths.folder_of).tolist():
            code, folder = divmod(pair, len(parents))
            folders.setdefault(numbers[listed.labels[code]], set()).add(parents[folder])
    named = {number: next(iter(found)) if len(found) == 1 else str(number) for number, found in folders.items()}
    alike = len(set(named.values())) < len(named)  # e.g. all images in one folder: its name tells nothing
    other_numbers = are_numbers(list(named.values())) and any(int(name) != number for number, name in named.items())
    return {} if alike or other_numbers else named


def read_lists(train: Path, test: Path | None, root: Path | None, split: SplitSpec | None) -> Splits:
    """A list file for training and one for testing, or one that is split; without both, no test images. Raises UserError."""
    problems, lists = [], []
    for file in (train, test) if test else (train,):
        try:
            lists.append(read_list_file(file, root or file.parent))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError(together(problems))
    numbers, names, notes = label_names(lists, str(train))
    notes += [note for listed in lists for note in listed.notes]
    sets = [list_set(listed, numbers) for listed in lists]
    train_set = sets[0].noted(*notes)
    if test is None and split is None:
        return without_tests(train_set, names)
    if test is None:
        return (*split_set(train_set, split.test_fraction, split.seed, names), names)
    return train_set, sets[1], names


def list_set(listed: Listed, numbers: dict[str, int], domain: int | None = None) -> ImageSet:
    """The images of a list, with the numbers of its labels."""
    labels = np.array([numbers[label] for label in listed.labels], dtype=np.int64)[listed.codes]
    return ImageSet(listed.paths, labels, None if domain is None else np.full(len(labels), domain))
