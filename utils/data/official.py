"""The official layouts of the papers' benchmarks: which file is which class, and in which split.

A reader of a layout sees names and the small annotation files through `Files`, so that the same code serves a folder that
is already unpacked (loading) and an archive (utils/data/prepare.py).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

import numpy as np

from utils.data.annotations import cars_annotations, id_table, plain_lines, split_parts
from utils.data.duplicates import is_first_process
from utils.data.paths import Paths
from utils.data.types import ImageSet, Splits
from utils.data.walk import files_below, is_hidden, is_image
from utils.errors import UserError
from utils.files import write_atomic

log = logging.getLogger("slca.data")

SPLIT_FILE = "split.json"  # beside ImageNet-R: {"train": [paths], "test": [paths]}
SPLIT_SEED = 0  # of the splits that are ours (ImageNet-R, RESISC45)
TEST_FRACTION = 0.2


class Entry(NamedTuple):
    """One image of a benchmark."""

    path: str  # as `Files` names it
    label: str  # class name; classes are numbered in sorted order
    test: bool


class Files(Protocol):
    """The files of a folder or an archive; names are relative, with forward slashes."""

    def names(self) -> list[str]: ...

    def read(self, name: str) -> bytes: ...


@dataclass(frozen=True)
class FolderFiles:
    """Files under a folder on disk."""

    root: Path

    def names(self) -> list[str]:
        return files_below(self.root)

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()


def entry_sets(entries: Sequence[Entry], folder: Path) -> Splits:
    """Entries with paths under `folder` as training set, test set and class names."""
    names = sorted({entry.label for entry in entries})
    number = {name: i for i, name in enumerate(names)}
    sets = []
    for test in (False, True):
        part = [entry for entry in entries if entry.test == test]
        sets.append(ImageSet(Paths.of(folder / entry.path for entry in part), np.array([number[e.label] for e in part], dtype=np.int64)))
    return sets[0], sets[1], names


# The benchmarks ----------------------------------------------------------------------------------------------

def cub_entries(files: Files) -> list[Entry]:
    """CUB-200-2011: images.txt "id path", image_class_labels.txt "id class", train_test_split.txt "id is_training"."""
    names = files.names()
    base = _folder_of(names, "images.txt", "CUB-200-2011")
    table = {key: id_table(base + f"{key}.txt", _lines(files, names, base + f"{key}.txt"))
             for key in ("images", "image_class_labels", "train_test_split", "classes")}
    for key in ("image_class_labels", "train_test_split"):
        _no_id_lacks(table["images"], table[key], f"{base}{key}.txt", "image")
    _no_id_lacks(table["image_class_labels"].values(), table["classes"], f"{base}classes.txt", "class")
    odd = {flag for flag in table["train_test_split"].values() if flag not in ("0", "1")}
    if odd:
        raise UserError(f"{base}train_test_split.txt: got {min(odd)!r}, allowed: 0 (test image) or 1 (training image)")
    entries = [Entry(f"{base}images/{path}", table["classes"][table["image_class_labels"][image]], table["train_test_split"][image] == "0")
               for image, path in table["images"].items()]
    return _present(entries, names)


def cars_entries(files: Files) -> list[Entry]:
    """Stanford Cars: the devkit's annotations of cars_train/ and cars_test/, or cars_annos.mat of car_ims/.

    Classes are named "<official number>.<name>", so that their sorted order is the official one.
    """
    names = files.names()
    if any(name.endswith("cars_annos.mat") for name in names):  # all images in one folder, with a flag
        file = _one(names, "cars_annos.mat", "Cars-196")
        base = _folder_of(names, "cars_annos.mat", "Cars-196")
        rows, classes = cars_annotations(file, files.read(file), ("relative_im_path", "class", "test"))
        return _present([Entry(base + path, _car_class(int(number), classes, file), bool(int(test))) for path, number, test in rows], names)
    file = _one(names, "cars_meta.mat", "Cars-196")
    _, classes = cars_annotations(file, files.read(file), ())
    entries = []
    for annotation_file, folder, test in (("cars_train_annos.mat", "cars_train", False),
                                          ("cars_test_annos_withlabels.mat", "cars_test", True)):
        file = _one(names, annotation_file, "Cars-196")
        rows, _ = cars_annotations(file, files.read(file), ("fname", "class"))
        by_name = {PurePosixPath(name).name: name for name in names if PurePosixPath(name).parent.name == folder}
        entries += [Entry(by_name.get(name, f"{folder}/{name}"), _car_class(int(number), classes, file), test) for name, number in rows]
    return _present(entries, names)


def imagenet_r_entries(files: Files) -> list[Entry]:
    """ImageNet-R has no official split: split.json if it is there, else METHOD's 80/20 by one permutation of all paths."""
    names = files.names()
    images = _class_folder_images(names, "ImageNet-R")
    given = [name for name in names if PurePosixPath(name).name == SPLIT_FILE]
    if given:
        base = str(PurePosixPath(given[0]).parent) + "/" if "/" in given[0] else ""
        return _present(_given_split(files, given[0], base), names)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(images))
    num_train = len(images) - round(TEST_FRACTION * len(images))
    is_test = np.ones(len(images), dtype=bool)
    is_test[order[:num_train]] = False
    return [Entry(path, _class_of(path), bool(test)) for path, test in zip(images, is_test, strict=True)]


def resisc_entries(files: Files) -> list[Entry]:
    """NWPU-RESISC45 has no official split: 80/20 of each class, by one permutation per class."""
    by_class: dict[str, list[str]] = {}
    for path in _class_folder_images(files.names(), "RESISC45"):
        by_class.setdefault(_class_of(path), []).append(path)
    entries = []
    for number, (label, paths) in enumerate(sorted(by_class.items())):
        order = np.random.default_rng([SPLIT_SEED, number]).permutation(len(paths))
        held_out = set(order[:round(TEST_FRACTION * len(paths))].tolist())
        entries += [Entry(path, label, i in held_out) for i, path in enumerate(paths)]
    return entries


def sketch_entries(files: Files) -> list[Entry]:
    """DomainNet's domain sketch by its cleaned lists sketch_train.txt and sketch_test.txt."""
    return [entry for entry in domainnet_entries(files, ["sketch"])]


def domainnet_entries(files: Files, domains: Sequence[str]) -> list[Entry]:
    """Images named by the cleaned lists <domain>_train.txt and <domain>_test.txt, lines "<domain>/<class>/<file> label"."""
    names = files.names()
    by_tail = {"/".join(PurePosixPath(name).parts[-3:]): name for name in names}
    entries = []
    for domain in domains:
        for part in ("train", "test"):
            for line in _lines(files, names, _one(names, f"{domain}_{part}.txt", "DomainNet")):
                path = line.rpartition(" ")[0]
                entries.append(Entry(by_tail.get(path, path), PurePosixPath(path).parent.name, part == "test"))
    return _present(entries, names)


def folder_entries(files: Files) -> list[Entry]:
    """train/<class>/ and val/ or test/<class>/, wherever they are in the archive."""
    entries = []
    for name in files.names():
        parts = PurePosixPath(name).parts
        if len(parts) >= 3 and parts[-3] in ("train", "val", "test") and is_image(name):
            entries.append(Entry(name, parts[-2], parts[-3] != "train"))
    return entries


# The split of ImageNet-R -------------------------------------------------------------------------------------

def write_split(folder: Path, entries: Sequence[Entry]) -> None:
    """Keep the split beside the data, once; a folder that cannot be written only loses the file."""
    file = folder / SPLIT_FILE
    if file.exists() or not is_first_process():
        return
    split = {"train": [e.path for e in entries if not e.test], "test": [e.path for e in entries if e.test]}
    try:
        write_atomic(file, json.dumps(split, indent=0))
        log.info("%s: wrote the split (%d training, %d test images)", file, len(split["train"]), len(split["test"]))
    except OSError as error:
        log.warning("%s cannot be written (%s); the split is the same without it", file, error)


def _given_split(files: Files, name: str, base: str) -> list[Entry]:
    parts = split_parts(name, files.read(name))
    return [Entry(base + path, _class_of(path), part == "test") for part, paths in parts.items() for path in paths]


# Help --------------------------------------------------------------------------------------------------------

def _class_of(path: str) -> str:
    return PurePosixPath(path).parent.name


def _class_folder_images(names: Sequence[str], what: str) -> list[str]:
    images = sorted(name for name in names if is_image(name) and "/" in name and not any(map(is_hidden, PurePosixPath(name).parts)))
    if not images:
        raise UserError(f"{what}: no images in class folders found; expected <class>/<image>")
    return images


def _one(names: Sequence[str], file: str, what: str) -> str:
    """The name whose last part is `file`; the one nearest to the top if there are several."""
    found = [name for name in names if PurePosixPath(name).name == file]
    if not found:
        raise UserError(f"{what}: the file {file} is missing; expected the official layout (see docs/datasets.md)")
    return min(found, key=lambda name: name.count("/"))


def _folder_of(names: Sequence[str], file: str, what: str) -> str:
    """The folder of `file`, "" or with a slash at its end."""
    parent = str(PurePosixPath(_one(names, file, what)).parent)
    return "" if parent == "." else parent + "/"


def _lines(files: Files, names: Sequence[str], name: str) -> list[str]:
    if name not in names:
        raise UserError(f"the file {name} is missing; expected the official layout (see docs/datasets.md)")
    return plain_lines(name, files.read(name))


def _present(entries: list[Entry], names: Sequence[str]) -> list[Entry]:
    there = set(names)
    missing = [entry.path for entry in entries if entry.path not in there]
    if missing:
        raise UserError(f"{len(missing)} of {len(entries)} listed images are missing, the first is {missing[0]}; is the archive "
                        "complete and unpacked?")
    return entries


def _no_id_lacks(wanted: Iterable[str], table: Mapping[str, str], file: str, what: str) -> None:
    lacking = list(dict.fromkeys(number for number in wanted if number not in table))
    if lacking:
        raise UserError(f"{file} has no line for {len(lacking)} {what} number(s), the first is {lacking[0]}; get the file anew from its "
                        "source")


def _car_class(number: int, classes: Sequence[str], file: str) -> str:
    """"001.AM General Hummer SUV 2000"; a slash in a name ("C/V") would be a folder."""
    if not 1 <= number <= len(classes):
        raise UserError(f"{file}: got the class {number}, allowed: 1 to {len(classes)}; is it of the same release as cars_meta.mat?")
    return f"{number:03d}.{classes[number - 1].replace('/', '-')}"
