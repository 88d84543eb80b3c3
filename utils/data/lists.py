"""Readers of list files ("path label" lines) and of sets with several domains."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.config import SplitSpec
from utils.data.folders import class_folders, find_test_folder, read_class_folders, split_set
from utils.data.types import ImageSet, Splits
from utils.errors import UserError

Entries = list[tuple[Path, str]]  # image file, label as written


# List files --------------------------------------------------------------------------------------------------

def read_list_file(file: Path, root: Path) -> Entries:
    """Lines "path label", paths relative to `root`; empty lines and lines that start with # are passed over.

    Raises:
        UserError: no such file, a line that is no pair, or an image that does not exist, with the line's number.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"list file {file} cannot be read ({getattr(error, 'strerror', None) or error}); it should hold one "
                        "'path label' pair per line") from None
    entries: Entries = []
    there: dict[Path, set[str]] = {}  # folder -> its files: one listing instead of one look-up per image
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        parts = line.strip().rsplit(maxsplit=1)  # a path may hold spaces
        if len(parts) < 2:
            raise UserError(f"{file}, line {number}: got {line.strip()!r}, allowed: a path and a label with a space between them")
        path, label = root / parts[0], parts[1]
        if path.parent not in there:
            there[path.parent] = set(os.listdir(path.parent)) if path.parent.is_dir() else set()
        if path.name not in there[path.parent]:
            raise UserError(f"{file}, line {number}: image {path} does not exist; paths are relative to {root}/")
        entries.append((path, label))
    if not entries:
        raise UserError(f"list file {file} names no image; it should hold one 'path label' pair per line")
    return entries


def label_names(entries: Entries, where: str) -> tuple[dict[str, int], list[str]]:
    """Number of each written label, and the class names.

    Labels that are whole numbers keep their number, and a class is called after the folder that all its images are in;
    other labels are names, numbered in sorted order.

    Raises:
        UserError: a label below 0, or numbers so large that they cannot be class numbers.
    """
    labels = {label for _, label in entries}
    if not all(label.lstrip("-").isdecimal() for label in labels):
        names = sorted(labels)
        return {name: i for i, name in enumerate(names)}, names
    numbers = {label: int(label) for label in labels}
    lowest, highest = min(numbers.values()), max(numbers.values())
    if lowest < 0 or highest >= 10 * len(entries) + 10:
        raise UserError(f"{where}: got the label {lowest if lowest < 0 else highest}, allowed: class numbers from 0 up, or names")
    folders: dict[int, set[str]] = {}
    for path, label in entries:
        folders.setdefault(numbers[label], set()).add(path.parent.name)
    named = {number: next(iter(found)) if len(found) == 1 else str(number) for number, found in folders.items()}
    if len(set(named.values())) < len(named):  # e.g. all images in one folder: its name tells nothing
        named = {number: str(number) for number in named}
    return numbers, [named.get(i, str(i)) for i in range(highest + 1)]


def read_lists(train: Path, test: Path | None, root: Path | None, split: SplitSpec | None) -> Splits:
    """A list file for training and one for testing, or one that is split. Raises UserError."""
    train_entries = read_list_file(train, root or train.parent)
    test_entries = read_list_file(test, root or test.parent) if test else []
    numbers, names = label_names(train_entries + test_entries, str(train))
    train_set = _as_set(train_entries, numbers)
    if test is None:
        assert split is not None, "either a test list or a split"
        return (*split_set(train_set, split.test_fraction, split.seed, names), names)
    return train_set, _as_set(test_entries, numbers), names


def _as_set(entries: Entries, numbers: dict[str, int], domain: int | None = None) -> ImageSet:
    labels = np.array([numbers[label] for _, label in entries], dtype=np.int64)
    return ImageSet([path for path, _ in entries], labels, None if domain is None else np.full(len(labels), domain))


# Domains -----------------------------------------------------------------------------------------------------

def find_domains(root: Path) -> list[str]:
    """Names of the domains under `root`: those of <domain>_train.txt files, else its sub-folders; sorted."""
    if not root.is_dir():
        return []
    listed = sorted(p.name.removesuffix("_train.txt") for p in root.glob("*_train.txt"))
    return listed or [p.name for p in class_folders(root)]


def read_domains(root: Path, domains: Sequence[str] | None, split: SplitSpec | None) -> Splits:
    """One sub-folder per domain, or DomainNet's list files; in the order of `domains` (None: sorted).

    Either `root`/<domain>_train.txt and <domain>_test.txt with lines "<domain>/<class>/<file> label", or
    `root`/<domain>/{train,val or test}/<class>/, or `root`/<domain>/<class>/ with a `split`.

    Raises:
        UserError: a domain, a list or a folder is missing or wrong.
    """
    found = find_domains(root)
    if not found:
        raise UserError(f"folder {root} does not exist or has no domains; it should hold one sub-folder per domain")
    domains = list(domains) if domains else found
    for domain in domains:
        if domain not in found:
            raise UserError(f"dataset.domains: {domain!r} is not under {root}/, allowed: {', '.join(found)}")
    if (root / f"{domains[0]}_train.txt").is_file():
        return _read_domain_lists(root, domains)
    return _read_domain_folders(root, domains, split)


def _read_domain_lists(root: Path, domains: list[str]) -> Splits:
    entries = {(domain, part): read_list_file(root / f"{domain}_{part}.txt", root) for domain in domains for part in ("train", "test")}
    numbers, names = label_names([entry for some in entries.values() for entry in some], str(root))
    train, test = (_joined([_as_set(entries[domain, part], numbers, d) for d, domain in enumerate(domains)]) for part in ("train", "test"))
    return train, test, names


def _read_domain_folders(root: Path, domains: list[str], split: SplitSpec | None) -> Splits:
    folders = {domain: root / domain if split else root / domain / "train" for domain in domains}
    missing = [domain for domain, folder in folders.items()
               if not folder.is_dir() or (not split and find_test_folder(root / domain) is None)]
    if missing:
        raise UserError(f"domain {root / missing[0]} needs train/ and val/ or test/ with one sub-folder of images per class; for one "
                        'folder of classes per domain add "split": {"test_fraction": 0.2}')
    names = sorted({folder.name for domain in domains for folder in class_folders(folders[domain])})
    train_parts, test_parts = [], []
    for number, domain in enumerate(domains):
        images = _in_domain(read_class_folders(folders[domain], names)[0], number)
        if split:
            images, test_images = split_set(images, split.test_fraction, split.seed, names)
        else:
            test_images = _in_domain(read_class_folders(find_test_folder(root / domain) or root, names)[0], number)
        train_parts.append(images)
        test_parts.append(test_images)
    return _joined(train_parts), _joined(test_parts), names


def _in_domain(images: ImageSet, domain: int) -> ImageSet:
    return ImageSet(images.images, images.labels, np.full(len(images), domain))


def _joined(parts: list[ImageSet]) -> ImageSet:
    """The images of all `parts`, one after another."""
    paths = [path for part in parts for path in part.images]
    return ImageSet(paths, np.concatenate([p.labels for p in parts]), np.concatenate([p.domains for p in parts]))
