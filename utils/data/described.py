"""Data sets described in the config alone (`DatasetSpec`): what they are, and loading them. Tutorial: docs/own_data.md."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from utils.config import DatasetSpec
from utils.data.arrays import check_synthetic, make_synthetic
from utils.data.domains import domain_class_names, find_domains, read_domains
from utils.data.duplicates import duplicate_notes
from utils.data.folders import (
    TEST_NAMES,
    check_classes,
    class_names,
    find_test_folder,
    read_class_folders,
    read_folders,
    split_set,
    without_tests,
)
from utils.data.labels import class_labels, number_note
from utils.data.lists import label_names, read_list_file, read_lists
from utils.data.notes import PassedOver, some, tell
from utils.data.npz import NpzFacts, npz_facts, read_npz
from utils.data.places import Place, Sources
from utils.data.types import IMAGENET_MEAN, IMAGENET_STD, DataMissing, DatasetInfo, ImageSet, Splits
from utils.data.walk import sub_folders
from utils.errors import UserError

SYNTHETIC_CLASSES, SYNTHETIC_SIZE = 20, 32  # where the config does not say
UNUSED = {"npz": ("train", "test", "split"), "synthetic": ("root", "train", "test", "split"), "domains": ("train", "test"),
          "folders": (), "training": ("train", "test", "split"), "lists": ()}  # keys that a layout does not look at


# What it is --------------------------------------------------------------------------------------------------

def spec_info(spec: DatasetSpec) -> DatasetInfo:
    """What the description and the names of the files tell. Raises UserError where the description contradicts itself."""
    sources = Sources.of(spec)
    image_size, channels, facts = spec.image_size, 3, None
    if spec.layout == "npz" and sources.root is not None and sources.root.exists:
        facts = _npz_facts(spec, sources.root.path)
        image_size, channels = image_size or facts.height, facts.channels
    elif spec.layout == "synthetic":
        image_size, channels = image_size or SYNTHETIC_SIZE, spec.channels
        check_synthetic(spec.num_classes or SYNTHETIC_CLASSES, spec.train_per_class + spec.test_per_class, image_size, channels,
                        spec.num_domains)
    elif spec.layout == "npz":  # not there yet
        channels = len(spec.mean) if spec.mean else 3
    in_memory = spec.layout in ("npz", "synthetic")
    test_transform = "none" if in_memory else "resize256_crop224"
    train_transform = spec.train_transform if spec.train_transform is not None else ("none" if in_memory else "crop224")
    mean, std = _statistics(spec, channels)
    names = _names(spec, sources, facts)
    num_classes = len(names) if names is not None else len(spec.classes) if spec.classes is not None else spec.num_classes
    # how many images there are is only known beforehand if they are made here
    made = num_classes * spec.num_domains if spec.layout == "synthetic" and num_classes else None
    return DatasetInfo(
        spec.name, num_classes, image_size or 224, channels, mean, std,
        # without augmentation, photos still have to be brought to one size: as for the test
        train_transform=test_transform if train_transform == "none" else train_transform, test_transform=test_transform,
        train_count=made and made * spec.train_per_class, test_count=made and made * spec.test_per_class,
        domains=_domain_names(spec, sources, facts), fixed_domain_order=spec.domains is not None,
        class_order=tuple(spec.class_order) if spec.class_order is not None else None,
        class_names=None if names is None else tuple(names), folder="" if sources.root is None else str(sources.root.path))


def _statistics(spec: DatasetSpec, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel; ImageNet's, averaged for grey images, where the config names none."""
    found = []
    for key, given, imagenet in (("mean", spec.mean, IMAGENET_MEAN), ("std", spec.std, IMAGENET_STD)):
        value = tuple(given) if given is not None else imagenet if channels == 3 else (sum(imagenet) / 3,)
        if len(value) != channels:
            raise UserError(f"dataset.{key}: got {len(value)} values, allowed: {channels}, one per channel of the images")
        found.append(value)
    return found[0], found[1]


def _npz_facts(spec: DatasetSpec, path: Path) -> NpzFacts:
    facts = npz_facts(path)
    if facts.height != facts.width and spec.image_size is None:
        raise UserError(f"{spec.root}: images are {facts.height}x{facts.width}; name the \"image_size\" they should be resized to")
    return facts


def _names(spec: DatasetSpec, sources: Sources, facts: NpzFacts | None) -> list[str] | None:
    """The class names by label, of those that the config selects; None where the data are not there."""
    names = _all_names(spec, sources) if facts is None else facts.names
    if spec.classes is None or names is None:
        return names
    return [names[label] for label in _chosen(spec, names)]


def _all_names(spec: DatasetSpec, sources: Sources) -> list[str] | None:
    root = sources.root.path if sources.root is not None else None
    if spec.layout == "synthetic":
        return [f"pattern {i}" for i in range(spec.num_classes or SYNTHETIC_CLASSES)]
    if spec.layout in ("folders", "training"):
        inside = "" if spec.split or spec.layout == "training" else "train"
        folder = sources.train.path if sources.train is not None else root and root / inside
        return (class_names(folder) or None) if folder is not None and os.path.isdir(folder) else None
    if spec.layout == "lists" and sources.train is not None and sources.train.exists:
        files = [place.path for place in (sources.train, sources.test) if place is not None and place.exists]
        return label_names([read_list_file(file, root or file.parent, look=False) for file in files], str(files[0]))[1]
    if spec.layout == "domains" and root is not None and find_domains(root):
        return domain_class_names(root, spec.domains, spec.split)
    return None


def _domain_names(spec: DatasetSpec, sources: Sources, facts: NpzFacts | None) -> tuple[str, ...]:
    if spec.layout == "npz":
        return tuple(spec.domains or (() if facts is None else facts.domains))
    if spec.layout == "domains":
        return tuple(spec.domains or (find_domains(sources.root.path) if sources.root is not None else ()))
    if spec.layout != "synthetic" or spec.num_domains == 1:
        if spec.domains:
            raise UserError(f"dataset.domains: the layout {spec.layout!r} has no domains; set \"layout\": \"domains\"")
        return ()
    names = tuple(spec.domains or (f"domain {i}" for i in range(spec.num_domains)))
    if len(names) != spec.num_domains:
        raise UserError(f"dataset.domains: got {len(names)} names, allowed: {spec.num_domains}, the number of domains to make")
    return names


# Loading -----------------------------------------------------------------------------------------------------

def load_spec(spec: DatasetSpec) -> Splits:
    """Training set, test set and class names. What was passed over or reinterpreted is logged, and noted on the training set.

    Raises:
        DataMissing: none of the places that the description names exists.
        UserError: whatever else is missing or wrong.
    """
    sources = Sources.of(spec)
    try:
        train, test, names = _read(spec, sources)
        notes = [*_unused_keys(spec, names), *sources.notes(), *train.notes, *number_note(names)]
        if spec.classes is not None:
            train, test, names = _select_classes(train, test, names, spec)
        notes += check_classes(train, test, names, f"data set {spec.name}")
    except UserError as error:
        raise DataMissing(str(error)) if sources.nothing_there else error from None
    notes += duplicate_notes(train, test)
    split = f"{spec.split.test_fraction:.3g} of each class for testing, seed {spec.split.seed}" if spec.split else ""
    return replace(train, notes=tell(f"data set {spec.name}", notes), split=split), test, names


def _read(spec: DatasetSpec, sources: Sources) -> Splits:
    if spec.layout == "synthetic":
        info = spec_info(spec)
        return make_synthetic(spec.num_classes or SYNTHETIC_CLASSES, spec.train_per_class, spec.test_per_class, info.image_size,
                              info.channels, spec.num_domains)
    selected = spec.classes is not None
    if spec.layout == "npz":
        return read_npz(_root(spec, sources, "npz file"), spec.domains)
    if spec.layout == "domains":
        return read_domains(_root(spec, sources, "folder", or_else=" or has no domains"), spec.domains, spec.split, selected=selected)
    if spec.layout == "lists":
        return _read_lists(spec, sources)
    if spec.layout == "training":
        return without_tests(*read_class_folders(_root(spec, sources, "folder"), selected=selected))
    if spec.split is not None:
        folder = _there(sources.train, "folder") if sources.train is not None else _root(spec, sources, "folder")
        images, names = read_class_folders(folder, selected=selected)
        return (*split_set(images, spec.split.test_fraction, spec.split.seed, names), names)
    return _read_two_folders(spec, sources, selected)


def _read_lists(spec: DatasetSpec, sources: Sources) -> Splits:
    if sources.train is None or (sources.test is None and spec.split is None):
        raise UserError(f"data set {spec.name}: the layout 'lists' needs \"train\" and \"test\", two list files, or \"train\" and "
                        '"split"')
    test = sources.test if spec.split is None else None
    missing = [place for place in (sources.train, test) if place is not None and not place.exists]
    if missing:
        raise UserError("; ".join(f"list file {place.given} cannot be read: {place.missing}" for place in missing))
    root = None if sources.root is None else _root(spec, sources, "folder")
    return read_lists(sources.train.path, None if test is None else test.path, root, spec.split)


def _read_two_folders(spec: DatasetSpec, sources: Sources, selected: bool) -> Splits:
    """A folder of training classes and one of test classes."""
    if sources.train is None or sources.test is None:
        root = _root(spec, sources, "folder", must_exist=False)
    train = sources.train.path if sources.train is not None else root / "train"
    test = sources.test.path if sources.test is not None else find_test_folder(root)
    problems = []
    for key, place, folder, options in (("train", sources.train, train, ["train"]), ("test", sources.test, test, TEST_NAMES)):
        if folder is None or not os.path.isdir(folder):
            places = place.tried if place is not None else [os.path.abspath(root / name) for name in options]
            problems.append(f'no folder for "{key}", tried {", ".join(map(str, places))}')
    if problems:
        if sources.root is not None and not sources.root.exists:
            problems.insert(0, f'"root": {sources.root.missing}')
        raise UserError(f"data set {spec.name}: {'; '.join(problems)}{_what_is_there(sources)}; expected one sub-folder of images per "
                        'class in each; for one folder of classes add "split": {"test_fraction": 0.2}')
    assert test is not None, "told above"
    both = sources.test is None and all((root / name).is_dir() for name in TEST_NAMES)
    note = [f'{root}/ holds val/ and test/; {test} is the test set, name the other under "test" to use it'] if both else []
    train_set, test_set, names = read_folders(train, test, selected=selected)
    return train_set.noted(*note), test_set, names


def _what_is_there(sources: Sources) -> str:
    """The folders under `root`, for a message that misses others."""
    if sources.root is None or not os.path.isdir(sources.root.path):
        return ""
    found = sub_folders(sources.root.path, PassedOver(sources.root.path))
    inside = [name for name in found if (sources.root.path / name / "train").is_dir()]
    hint = f' (is {os.path.abspath(sources.root.path / inside[0])} the "root"?)' if inside else ""
    return f"; {os.path.abspath(sources.root.path)} holds {f'the folders {some(found)}{hint}' if found else 'no folders'}"


def _root(spec: DatasetSpec, sources: Sources, what: str, *, or_else: str = "", must_exist: bool = True) -> Path:
    if sources.root is None:
        raise UserError(f"data set {spec.name}: key \"root\" is missing; name the folder (or the npz file) that holds the data")
    return _there(sources.root, what, or_else) if must_exist else sources.root.path


def _there(place: Place, what: str, or_else: str = "") -> Path:
    if not place.exists:
        raise UserError(f"{what} {place.given} does not exist{or_else}; tried {', '.join(map(str, place.tried))}; place the data there, or "
                        "name where they are in the dataset object")
    return place.path


def _unused_keys(spec: DatasetSpec, names: list[str]) -> list[str]:
    """A note for every key that says nothing to this layout."""
    notes = [f'"{key}" is not used by the layout {spec.layout!r}' for key in UNUSED[spec.layout] if getattr(spec, key) is not None]
    if spec.layout in ("folders", "lists") and spec.split is not None and spec.test is not None:
        notes.append('"test" is not used: "split" cuts the test set from the training images')
    if spec.layout != "synthetic" and spec.num_classes not in (None, len(names)):
        notes.append(f'"num_classes": {spec.num_classes} is not used: the data have {len(names)} classes')
    return notes


def _chosen(spec: DatasetSpec, names: list[str]) -> list[int]:
    """Labels of the classes that the config lists. Raises UserError."""
    chosen = class_labels(spec.classes or [], names, "dataset.classes")
    unknown = [wanted for wanted, label in zip(spec.classes or [], chosen, strict=True) if not 0 <= label < len(names)]
    if unknown:
        raise UserError(f"dataset.classes: {', '.join(map(repr, unknown))} is no class of {spec.name}, allowed: 0 to {len(names) - 1} or a "
                        "class's name")
    if len(set(chosen)) < len(chosen) or not chosen:
        raise UserError("dataset.classes: each class may be listed once, and at least one must be")
    return chosen


def _select_classes(train: ImageSet, test: ImageSet, names: list[str], spec: DatasetSpec) -> Splits:
    """Keep the classes that the config lists; they are numbered anew in the listed order."""
    chosen = _chosen(spec, names)
    new_label = np.full(len(names), -1)
    new_label[chosen] = np.arange(len(chosen))
    kept = []
    for images in (train, test):
        part = images.subset(np.flatnonzero(new_label[images.labels] >= 0))
        kept.append(replace(part, labels=new_label[part.labels]))
    return kept[0], kept[1], [names[c] for c in chosen]
