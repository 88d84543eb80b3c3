"""Reader of class folders, and the checks that every layout goes through.

A reader looks at names, never into images, and gives two `ImageSet`s and the class names. All mistakes in the data are told
together, with their paths; what is passed over or taken otherwise is noted on the training set.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.data.notes import PassedOver, some, tell, together
from utils.data.paths import PathsBuilder
from utils.data.types import ImageSet, Splits, members_by_group
from utils.data.walk import EXTENSIONS, has_images, images_below, is_image, same_spelling, sub_folders
from utils.errors import UserError

TEST_NAMES = ("val", "test")  # of the test folder beside train/
SPLIT_NAMES = {"val", "test", "valid", "validation", "testing"}  # beside "train", no names of classes


def image_files(folder: Path) -> list[Path]:
    """All image files under `folder`, sorted; what is passed over is logged."""
    passed = PassedOver(folder)
    files = [Path(place) / name for place, name in images_below(folder, passed)]
    tell("images", passed.notes())
    return files


def class_names(folder: Path) -> list[str]:
    """Names of the class folders of `folder`, sorted; an entry's place is its label."""
    return list(_class_folders(folder, PassedOver(folder), []))


def read_class_folders(folder: Path, names: Sequence[str] | None = None, *, selected: bool = False,
                       passed: PassedOver | None = None) -> tuple[ImageSet, list[str]]:
    """One sub-folder per class. With `names` (the training set's classes) any other class is an error.

    Args:
        selected: the config lists the classes to use, so that others may be empty or unknown.
        passed: counts what is passed over, for a set of several such folders; else a note says it.

    Raises:
        UserError: no folder, no class folders, class folders without images, or classes that are not in `names`.
    """
    own = PassedOver(folder) if passed is None else passed
    found = _scan(folder, names, selected, own)
    if found.problems:
        raise UserError(together(found.problems))
    return found.images.noted(*found.notes, *(own.notes() if passed is None else ())), found.names


def read_folders(train: Path, test: Path, *, selected: bool = False) -> Splits:
    """Class folders under `train` and under `test`. Raises UserError."""
    if train.is_dir() and test.is_dir() and train.samefile(test):
        raise UserError(f"train and test are the same folder, {train}; name two, or split one with "
                        '"split": {"test_fraction": 0.2}')
    passed = PassedOver(Path(os.path.commonpath([os.path.abspath(train), os.path.abspath(test)])))
    train_found = _scan(train, None, selected, passed)
    test_found = _scan(test, train_found.names, selected, passed)
    if train_found.problems or test_found.problems:
        raise UserError(together(train_found.problems + test_found.problems))
    notes = (*train_found.notes, *test_found.notes, *passed.notes())
    return train_found.images.noted(*notes), test_found.images, train_found.names


def without_tests(train: ImageSet, names: list[str]) -> Splits:
    """Training images, no test image, and the class names."""
    return train, ImageSet(PathsBuilder().done(), np.empty(0, dtype=np.int64)), names


def find_test_folder(root: Path) -> Path | None:
    """`root`/val or `root`/test, whichever is there."""
    return next((root / name for name in TEST_NAMES if os.path.isdir(root / name)), None)


def split_set(images: ImageSet, test_fraction: float, seed: int, names: Sequence[str]) -> tuple[ImageSet, ImageSet]:
    """Cut `test_fraction` of each class's images (each domain's by itself) off as the test set, by one permutation per class.

    A class of two or more images keeps at least one on each side; a class of one image has no test image.
    """
    train_parts, test_parts = [], []
    groups = images.labels if images.domains is None else images.labels + len(names) * images.domains
    for members in members_by_group(groups):
        members = members[np.random.default_rng([seed, int(groups[members[0]])]).permutation(len(members))]
        held_out = min(max(1, round(test_fraction * len(members))), len(members) - 1)
        test_parts.append(members[:held_out])
        train_parts.append(members[held_out:])
    train, test = images.subset(np.sort(np.concatenate(train_parts))), images.subset(np.sort(np.concatenate(test_parts)))
    return train, ImageSet(test.images, test.labels, test.domains)  # the notes stay with the training set


# Reading -----------------------------------------------------------------------------------------------------

@dataclass
class _Found:
    """What is under one folder of classes."""

    names: list[str]
    images: ImageSet
    problems: list[str]
    notes: list[str]


_Empty = tuple[Path, PassedOver]  # a class folder without images, and what lies in it


def _class_folders(folder: Path, passed: PassedOver, notes: list[str]) -> dict[str, list[Path]]:
    """Class -> its folders: one, or several whose names differ in their Unicode spelling alone."""
    spelled: dict[str, list[str]] = {}
    for name in sub_folders(folder, passed):
        spelled.setdefault(same_spelling(name), []).append(name)
    merged = [names for names in spelled.values() if len(names) > 1]
    if merged:
        notes.append(f"{len(merged)} class(es) under {folder}/ have several folders whose names differ in their Unicode spelling alone and "
                     f"are read as one, the first is {merged[0][0]!r} ({' and '.join(map(ascii, merged[0]))})")
    by_place: dict[str, list[str]] = {}
    for names in spelled.values():
        by_place.setdefault(os.path.realpath(folder / names[0]), []).append(names[0])
    notes += [f"the class folders {' and '.join(names)} under {folder}/ are one folder, by a link: its images have {len(names)} classes"
              for names in by_place.values() if len(names) > 1]
    return {names[0]: [folder / name for name in names] for names in spelled.values()}


def _scan(folder: Path, names: Sequence[str] | None, selected: bool, passed: PassedOver) -> _Found:
    """All images under the class folders of `folder`, and all that is wrong with them. Raises UserError without any class."""
    if not os.path.isdir(folder):
        raise UserError(f"folder {folder} {'is a file' if os.path.exists(folder) else 'does not exist'}; it should hold one sub-folder of "
                        "images per class")
    notes: list[str] = []
    classes = _class_folders(folder, passed, notes)
    if not classes:
        raise UserError(_no_classes(folder))
    own_names = list(classes) if names is None else list(names)
    label_of = {same_spelling(name): i for i, name in enumerate(own_names)}
    known = {name: label_of[same_spelling(name)] for name in classes if same_spelling(name) in label_of}
    respelled = [name for name, label in known.items() if name != own_names[label]]
    if respelled:
        notes.append(f"{len(respelled)} class folder(s) under {folder}/ are spelled otherwise in Unicode than the training classes that "
                     f"they are taken for, the first is {respelled[0]!r} ({respelled[0]!a})")
    images, empty = _read_images(classes, known, passed)
    problems = [] if selected or (names is not None and known) else _wrong_level(folder, classes)
    if not problems:
        notes += _all_deeper(folder, classes, images)
        odd = _empty(empty) + _unknown(folder, [name for name in classes if name not in known], own_names)
        (notes if selected else problems).extend(odd)
    return _Found(own_names, images, problems, notes)


def _read_images(classes: dict[str, list[Path]], labels: dict[str, int], passed: PassedOver) -> tuple[ImageSet, list[_Empty]]:
    """The images of the classes that have a label, and the classes without any."""
    paths, counts, empty = PathsBuilder(), [], []
    for name in labels:
        before, own = len(paths), PassedOver(passed.root)
        for place in classes[name]:
            for parent, file in images_below(place, own):
                paths.add(parent, file)
        passed.include(own)
        counts.append(len(paths) - before)
        if not counts[-1]:
            empty.append((classes[name][0], own))
    return ImageSet(paths.done(), np.repeat(np.array(list(labels.values()), dtype=np.int64), counts)), empty


def _all_deeper(folder: Path, classes: dict[str, list[Path]], images: ImageSet) -> list[str]:
    """A note if every image lies in a sub-folder of its class folder: perhaps those are the classes."""
    own = {str(place) for places in classes.values() for place in places}
    if len(classes) < 2 or not len(images) or any(os.fsdecode(place) in own for place in images.images.folders):
        return []
    return [f"no class folder under {folder}/ holds images itself, they lie in sub-folders (the first is {images.images[0]}); the "
            f"{len(classes)} folders directly under it are the classes"]


def _no_classes(folder: Path) -> str:
    images = sum(is_image(name) for name in os.listdir(folder))
    if images:
        return (f"folder {folder} has no sub-folders but {images} image(s) itself; it should hold one sub-folder of images per class"
                f" (if it is one class, name the folder above it, {Path(os.path.abspath(folder)).parent})")
    return f"folder {folder} has no sub-folders; it should hold one sub-folder of images per class"


def _wrong_level(folder: Path, classes: dict[str, list[Path]]) -> list[str]:
    """A sentence if the classes seem to be one level further down, or the folders are a split and no classes."""
    lower = {name.lower() for name in classes}
    if "train" in lower and len(lower) > 1 and lower - {"train"} <= SPLIT_NAMES:
        return [f"folder {folder} holds {some(list(classes))}, which look like training and test images and not like classes; leave "
                'out "split", or name the folders under "train" and "test" (or list them under "classes" if they are classes)']
    if len(classes) > 1:
        return []
    (name, (place, *_)), = classes.items()
    inner = [sub for sub in sub_folders(place, PassedOver(place)) if has_images(place / sub)]
    if len(inner) < 2 or any(is_image(file) for file in os.listdir(place)):
        return []
    where = os.path.abspath(place)
    return [f"folder {folder} holds one class, {name}, whose sub-folders {some(inner)} look like the classes; name {where} instead of "
            f'{os.path.abspath(folder)} (or list {name!r} under "classes" if it is one class)']


def _empty(empty: Sequence[_Empty]) -> list[str]:
    if not empty:
        return []
    place, passed = empty[0]
    held = ", ".join(f"{count} {suffix}" for suffix, count in passed.suffixes().most_common(3))
    what = f"class folder {place} has no images" if len(empty) == 1 else f"{len(empty)} class folders have no images, the first is {place}"
    return [f"{what} ({f'it holds {held}; ' if held else ''}allowed: {', '.join(sorted(EXTENSIONS))}); add some or remove the folder"]


def _unknown(folder: Path, unknown: Sequence[str], names: Sequence[str]) -> list[str]:
    if not unknown:
        return []
    near = difflib.get_close_matches(unknown[0], names, n=1)
    what = (f"class folder {folder / unknown[0]} has no counterpart" if len(unknown) == 1 else
            f"{len(unknown)} class folders under {folder}/ have no counterpart ({some(unknown)})")
    return [f"{what} among the training classes{f' (is it {near[0]!r}?)' if near else ''}; remove it, or add training images for it"]


# Checks common to all layouts --------------------------------------------------------------------------------

def label_limit(count: int) -> int:
    """Class numbers of a set of `count` images stay below this: a class without an image is possible, millions are a mistake."""
    return min(10 * count + 10, max(10_000, count))


def check_classes(train: ImageSet, test: ImageSet, names: Sequence[str], where: str) -> list[str]:
    """Every class needs training images; what else is odd about them is returned as notes. Raises UserError."""
    without_train = np.setdiff1d(np.arange(len(names)), train.labels)
    if len(without_train):
        raise UserError(f"{where}: {_named(without_train, names)} no training image; every class 0 to {len(names) - 1} needs one "
                        "(or list the classes to use under \"classes\")")
    notes = []
    without_test = np.setdiff1d(np.arange(len(names)), test.labels)
    if not len(test):
        notes.append("there is no test image at all, so no accuracy can be measured; all of them will be null")
    elif len(without_test):
        notes.append(f"{_named(without_test, names)} no test image and will not count in any accuracy")
    if train.domains is not None:
        slots = len(names) * (int(train.domains.max()) + 1)
        empty = slots - len(np.unique(train.domains * len(names) + train.labels))
        if empty:
            notes.append(f"{empty} of {slots} pairs of a domain and a class have no training image and will not be learned")
    return notes


def _named(classes: np.ndarray, names: Sequence[str]) -> str:
    some = ", ".join(repr(names[c]) for c in classes[:5])
    return f"class {some} has" if len(classes) == 1 else f"{len(classes)} classes ({some}{', ...' if len(classes) > 5 else ''}) have"
