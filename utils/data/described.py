"""Data sets described in the config alone (`DatasetSpec`): what they are, and loading them. Tutorial: docs/own_data.md."""

from __future__ import annotations

import difflib
import hashlib
import logging
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np

from utils.config import DatasetSpec
from utils.data.arrays import make_synthetic
from utils.data.folders import (
    check_classes,
    class_folders,
    find_test_folder,
    npz_domains,
    npz_shape,
    read_class_folders,
    read_folders,
    read_npz,
    split_set,
)
from utils.data.lists import find_domains, label_names, read_domains, read_list_file, read_lists
from utils.data.types import IMAGENET_MEAN, IMAGENET_STD, DatasetInfo, ImageSet, Splits
from utils.errors import UserError
from utils.files import locate

log = logging.getLogger("slca.data")

SYNTHETIC_CLASSES, SYNTHETIC_SIZE = 20, 32  # where the config does not say


# What it is --------------------------------------------------------------------------------------------------

def spec_info(spec: DatasetSpec) -> DatasetInfo:
    """What the description and the names of the files tell. Raises UserError where the description contradicts itself."""
    spec = _located(spec)
    num_classes, image_size, channels = spec.num_classes, spec.image_size, 3
    if spec.layout == "npz" and spec.root and Path(spec.root).is_file():
        found_classes, found_size, channels = _npz_facts(spec)
        num_classes, image_size = num_classes or found_classes, image_size or found_size
    elif spec.layout == "synthetic":
        num_classes, image_size, channels = num_classes or SYNTHETIC_CLASSES, image_size or SYNTHETIC_SIZE, spec.channels
    elif spec.layout == "npz":  # not there yet
        channels = len(spec.mean) if spec.mean else 3
    in_memory = spec.layout in ("npz", "synthetic")
    test_transform = "none" if in_memory else "resize256_crop224"
    train_transform = spec.train_transform if spec.train_transform is not None else ("none" if in_memory else "crop224")
    mean, std = _statistics(spec, channels)
    num_classes = len(spec.classes) if spec.classes is not None else num_classes or _count_classes(spec)
    # how many images there are is only known beforehand if they are made here
    made = num_classes * spec.num_domains if spec.layout == "synthetic" and num_classes else None
    return DatasetInfo(
        spec.name, num_classes, image_size or 224, channels, mean, std,
        # without augmentation, photos still have to be brought to one size: as for the test
        train_transform=test_transform if train_transform == "none" else train_transform, test_transform=test_transform,
        train_count=made and made * spec.train_per_class, test_count=made and made * spec.test_per_class,
        domains=_domain_names(spec), fixed_domain_order=spec.domains is not None,
        class_order=tuple(spec.class_order) if spec.class_order is not None else None, folder=spec.root or "")


def _located(spec: DatasetSpec) -> DatasetSpec:
    """The description with its paths where they are: in the working folder, else in the project's."""
    paths = {key: getattr(spec, key) for key in ("root", "train", "test")}
    return spec.model_copy(update={key: locate(path) for key, path in paths.items() if path is not None})


def _statistics(spec: DatasetSpec, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel; ImageNet's, averaged for grey images, where the config names none."""
    found = []
    for key, given, imagenet in (("mean", spec.mean, IMAGENET_MEAN), ("std", spec.std, IMAGENET_STD)):
        value = tuple(given) if given is not None else imagenet if channels == 3 else (sum(imagenet) / 3,)
        if len(value) != channels:
            raise UserError(f"dataset.{key}: got {len(value)} values, allowed: {channels}, one per channel of the images")
        found.append(value)
    return found[0], found[1]


def _npz_facts(spec: DatasetSpec) -> tuple[int, int, int]:
    """Number of classes, image size and channels."""
    num_classes, height, width, channels = npz_shape(_root(spec))
    if height != width and spec.image_size is None:
        raise UserError(f"{spec.root}: images are {height}x{width}; name the \"image_size\" they should be resized to")
    return num_classes, height, channels


def _count_classes(spec: DatasetSpec) -> int | None:
    """From the names of folders or the lists; None where they are not there."""
    if spec.layout == "folders":
        folder = Path(spec.train) if spec.train else Path(spec.root or "") / ("" if spec.split else "train")
        return len(class_folders(folder)) or None if (spec.train or spec.root) and folder.is_dir() else None
    if spec.layout == "lists" and spec.train and Path(spec.train).is_file():
        file = Path(spec.train)
        return len(label_names(read_list_file(file, Path(spec.root) if spec.root else file.parent), str(file))[1])
    if spec.layout == "domains" and find_domains(Path(spec.root or "")):
        return len(read_domains(_root(spec), spec.domains, spec.split)[2])
    return None


def _domain_names(spec: DatasetSpec) -> tuple[str, ...]:
    if spec.layout == "domains":
        return tuple(spec.domains or find_domains(Path(spec.root or "")))
    if spec.layout == "npz":
        return tuple(spec.domains or (npz_domains(_root(spec)) if spec.root and Path(spec.root).is_file() else ()))
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
    """Training set, test set and class names. Raises UserError for whatever is missing or wrong."""
    spec = _located(spec)
    train, test, names = _read(spec)
    if spec.classes is not None:
        train, test, names = _select_classes(train, test, names, spec)
    check_classes(train, test, names, f"data set {spec.name}")
    _warn_about_duplicates(spec, train, test)
    return train, test, names


def _read(spec: DatasetSpec) -> Splits:
    if spec.layout == "synthetic":
        info = spec_info(spec)
        return make_synthetic(spec.num_classes or SYNTHETIC_CLASSES, spec.train_per_class, spec.test_per_class, info.image_size,
                              info.channels, spec.num_domains)
    if spec.layout == "npz":
        return read_npz(_root(spec), spec.domains)
    if spec.layout == "domains":
        return read_domains(_root(spec), spec.domains, spec.split)
    if spec.layout == "lists":
        if not spec.train or not (spec.test or spec.split):
            raise UserError(f"data set {spec.name}: the layout 'lists' needs \"train\" and \"test\", two list files, or \"train\" and "
                            '"split"')
        return read_lists(Path(spec.train), Path(spec.test) if spec.test else None, Path(spec.root) if spec.root else None, spec.split)
    if spec.split is not None:
        images, names = read_class_folders(Path(spec.train) if spec.train else _root(spec))
        return (*split_set(images, spec.split.test_fraction, spec.split.seed, names), names)
    train = Path(spec.train) if spec.train else _root(spec) / "train"
    test = Path(spec.test) if spec.test else find_test_folder(_root(spec))
    if not train.is_dir() or test is None:
        raise UserError(f"data set {spec.name}: expected {train}/ and {test or f'{spec.root}/val/ or {spec.root}/test'}/, one sub-folder "
                        'of images per class in each; for one folder of classes add "split": {"test_fraction": 0.2}')
    return read_folders(train, test)


def _root(spec: DatasetSpec) -> Path:
    if not spec.root:
        raise UserError(f"data set {spec.name}: key \"root\" is missing; name the folder (or the npz file) that holds the data")
    return Path(spec.root)


def _select_classes(train: ImageSet, test: ImageSet, names: list[str], spec: DatasetSpec) -> Splits:
    """Keep the classes that the config lists; they are numbered anew in the listed order."""
    numbers = {name: i for i, name in enumerate(names)}
    chosen = [numbers.get(c, -1) if isinstance(c, str) else c for c in spec.classes or []]
    for wanted, number in zip(spec.classes or [], chosen, strict=True):
        if not 0 <= number < len(names):
            near = difflib.get_close_matches(str(wanted), names, n=1)
            raise UserError(f"dataset.classes: {wanted!r} is no class of {spec.name}, allowed: 0 to {len(names) - 1} or a class's name"
                            + (f"; did you mean {near[0]!r}?" if near else ""))
    if len(set(chosen)) < len(chosen) or not chosen:
        raise UserError("dataset.classes: each class may be listed once, and at least one must be")
    new_label = np.full(len(names), -1)
    new_label[chosen] = np.arange(len(chosen))
    kept = []
    for images in (train, test):
        part = images.subset(np.flatnonzero(new_label[images.labels] >= 0))
        kept.append(replace(part, labels=new_label[part.labels]))
    return kept[0], kept[1], [names[c] for c in chosen]


def _warn_about_duplicates(spec: DatasetSpec, train: ImageSet, test: ImageSet) -> None:
    """Say so if a test image is also trained on: legal, but the accuracy then means little.

    Only files whose size occurs in both splits are read.
    """
    if isinstance(train.images, np.ndarray) or isinstance(test.images, np.ndarray):
        return
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in train.images:
        by_size[path.stat().st_size].append(path)
    digests: dict[int, dict[bytes, Path]] = {}
    pairs = []
    for path in test.images:
        size = path.stat().st_size
        if size not in by_size:
            continue
        if size not in digests:
            digests[size] = {_digest(p): p for p in by_size[size]}
        twin = digests[size].get(_digest(path))
        if twin is not None:
            pairs.append((path, twin))
    if pairs:
        log.warning("data set %s: %d of %d test images are also training images, e.g. %s = %s; its accuracy will look too good",
                    spec.name, len(pairs), len(test), *pairs[0])


def _digest(path: Path) -> bytes:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
