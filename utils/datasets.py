"""Every data set the project knows: the registered ones, and those a config describes (`DatasetSpec`).

`dataset_info` tells what can be known without reading an image (a dry run needs no data); `load_dataset` gives the
training set, the test set and the class names. A new benchmark is one entry in REGISTRY.
"""

from __future__ import annotations

import difflib
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Union

import numpy as np

from utils.config import DatasetSpec
from utils.dataset_layouts import (ImageSet, Splits, check_classes, class_folders, find_test_folder, read_class_folders,
                                   read_folders, read_npz, split_set)
from utils.dataset_memory import load_digits, load_torchvision, make_synthetic
from utils.errors import UserError

__all__ = ["DatasetInfo", "ImageSet", "REGISTRY", "dataset_info", "list_datasets", "load_dataset"]

log = logging.getLogger(__name__)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


@dataclass(frozen=True)
class DatasetInfo:
    """All that is known about a data set without reading any image."""

    name: str
    num_classes: int | None  # None: a folder that is not there yet
    image_size: int  # pixels a side, after the transforms
    channels: int
    mean: tuple[float, ...]  # per channel, of pixels in [0, 1]
    std: tuple[float, ...]
    train_transform: Union[str, "list[Any]"]  # names understood by utils/transforms.py
    test_transform: str
    train_count: int | None = None
    test_count: int | None = None
    domains: tuple[str, ...] = ()  # names, in the set's own order
    fixed_domain_order: bool = False  # the user listed them: never shuffled
    class_order: tuple[int, ...] | None = None  # overrides shuffle and seed
    folder: str = ""  # under data_root
    source: str = ""  # where to get it, and its licence


@dataclass(frozen=True)
class Registered:
    """One line of `python main.py list datasets`."""

    info: DatasetInfo
    load: Callable[[Path], Splits]  # data_root -> train, test, class names


def _cifar(name: str, num_classes: int, image_size: int) -> Registered:
    mean, std = (CIFAR10_MEAN, CIFAR10_STD) if num_classes == 10 else (CIFAR100_MEAN, CIFAR100_STD)
    transforms = ("crop32_jitter", "none") if image_size == 32 else ("crop224_jitter", "resize256_crop224")
    info = DatasetInfo(name, num_classes, image_size, 3, mean, std, *transforms, train_count=50_000, test_count=10_000,
                       source="https://www.cs.toronto.edu/~kriz/cifar.html, downloaded by torchvision")
    return Registered(info, lambda root: load_torchvision(f"CIFAR{num_classes}", root))


def _synthetic(info: DatasetInfo, train_per_class: int, test_per_class: int) -> Registered:
    assert info.num_classes is not None, "synthetic images need a number of classes"
    num_domains = max(1, len(info.domains))
    counts = [info.num_classes * num_domains * n for n in (train_per_class, test_per_class)]
    return Registered(replace(info, train_count=counts[0], test_count=counts[1]), lambda root: make_synthetic(
        info.num_classes, train_per_class, test_per_class, info.image_size, info.channels, num_domains))


REGISTRY: dict[str, Registered] = {entry.info.name: entry for entry in (
    _cifar("cifar10", 10, 32),
    _cifar("cifar100", 100, 32),
    _cifar("cifar10_224", 10, 224),
    _cifar("cifar100_224", 100, 224),
    Registered(DatasetInfo("fashion_mnist", 10, 28, 1, (0.2860,), (0.3530,), "none", "none", 60_000, 10_000,
                           source="https://github.com/zalandoresearch/fashion-mnist (MIT), downloaded by torchvision"),
               lambda root: load_torchvision("FashionMNIST", root)),
    Registered(DatasetInfo("digits", 10, 28, 1, (0.3088,), (0.3489,), "none", "none", 1_438, 359,
                           source="comes with scikit-learn (BSD)"), lambda root: load_digits()),
    _synthetic(DatasetInfo("synthetic", 20, 32, 3, (0.5,) * 3, (0.25,) * 3, "none", "none", source="made in memory"), 20, 10),
)}


def list_datasets() -> list[DatasetInfo]:
    """The registered data sets, for `python main.py list datasets`."""
    return [entry.info for entry in REGISTRY.values()]


def dataset_info(dataset: str | DatasetSpec, data_root: str = "data") -> DatasetInfo:
    """What is known about `dataset` without reading an image.

    Raises:
        UserError: no such data set, or a description that contradicts itself.
    """
    return _resolve(dataset).info if isinstance(dataset, str) else _spec_info(dataset)


def load_dataset(dataset: str | DatasetSpec, data_root: str = "data") -> Splits:
    """Training set, test set and class names of `dataset`; images in files are listed, not read.

    Raises:
        UserError: no such data set, or its files are missing or wrong; says what to place where.
    """
    if isinstance(dataset, str):
        return _resolve(dataset).load(Path(data_root))
    train, test, names = _load_spec(dataset)
    if dataset.classes is not None:
        train, test, names = _select_classes(train, test, names, dataset)
    check_classes(train, test, names, f"data set {dataset.name}")
    return train, test, names


def _resolve(name: str) -> Registered:
    if name in REGISTRY:
        return REGISTRY[name]
    near = difflib.get_close_matches(name, REGISTRY, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "for your own images give an object, see docs/own_data.md"
    raise UserError(f"dataset: got {name!r}, allowed: {', '.join(REGISTRY)}; {hint}")


# Data sets described in the config -----------------------------------------------------------------------------

def _spec_info(spec: DatasetSpec) -> DatasetInfo:
    num_classes, image_size, channels = spec.num_classes, spec.image_size, 3
    train_count = test_count = None
    if spec.layout == "npz":
        found_classes, found_size, channels = _npz_shape(spec)
        num_classes, image_size = num_classes or found_classes, image_size or found_size
    elif spec.layout == "synthetic":
        num_classes, image_size, channels = num_classes or 20, image_size or 32, spec.channels
    else:
        num_classes = num_classes or _count_class_folders(spec)
    if spec.classes is not None:
        num_classes = len(spec.classes)
    in_memory = spec.layout in ("npz", "synthetic")
    test_transform = "none" if in_memory else "resize256_crop224"
    train_transform = spec.train_transform if spec.train_transform is not None else ("none" if in_memory else "crop224")
    mean, std = _statistics(spec, channels)
    info = DatasetInfo(
        spec.name, num_classes, image_size or 224, channels, mean, std,
        # without augmentation, photos still have to be brought to one size: as for the test
        train_transform=test_transform if train_transform == "none" else train_transform,
        test_transform=test_transform, train_count=train_count, test_count=test_count,
        domains=_domain_names(spec), fixed_domain_order=spec.domains is not None,
        class_order=tuple(spec.class_order) if spec.class_order is not None else None, folder=spec.root or "")
    return _synthetic(info, spec.train_per_class, spec.test_per_class).info if spec.layout == "synthetic" else info


def _statistics(spec: DatasetSpec, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    grey = tuple(np.mean(values).item() for values in (IMAGENET_MEAN, IMAGENET_STD))
    default = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((grey[0],), (grey[1],))
    given = [tuple(value) if value is not None else fallback for value, fallback in zip((spec.mean, spec.std), default)]
    for key, value in zip(("mean", "std"), given):
        if len(value) != channels:
            raise UserError(f"dataset.{key}: got {len(value)} values, allowed: {channels}, one per channel of the images")
    return given[0], given[1]


def _load_spec(spec: DatasetSpec) -> Splits:
    if spec.layout == "synthetic":
        info = _spec_info(spec)
        return make_synthetic(info.num_classes or 0, spec.train_per_class, spec.test_per_class, info.image_size, info.channels,
                              spec.num_domains)
    if spec.layout == "npz":
        return read_npz(_root(spec))
    if spec.layout == "folders":
        return _load_folders(spec)
    raise UserError(f"dataset.layout: {spec.layout!r} is not there yet")


def _load_folders(spec: DatasetSpec) -> Splits:
    if spec.split is not None:
        folder = Path(spec.train) if spec.train else _root(spec)
        images, names = read_class_folders(folder)
        return (*split_set(images, spec.split.test_fraction, spec.split.seed, names), names)
    train = Path(spec.train) if spec.train else _root(spec) / "train"
    test = Path(spec.test) if spec.test else find_test_folder(_root(spec))
    if not train.is_dir() or test is None:
        raise UserError(f"data set {spec.name}: expected {train}/ and {test or f'{spec.root}/val/ or {spec.root}/test/'}, one sub-folder "
                        'of images per class in each; for one folder of classes add "split": {"test_fraction": 0.2}')
    return read_folders(train, test)


def _root(spec: DatasetSpec) -> Path:
    if not spec.root:
        raise UserError(f"data set {spec.name}: key \"root\" is missing; name the folder (or the npz file) that holds the data")
    return Path(spec.root)


def _npz_shape(spec: DatasetSpec) -> tuple[int | None, int | None, int]:
    """Number of classes, image size and channels of an npz file; unknown where it is not there (dry run)."""
    if not spec.root or not Path(spec.root).is_file():
        return None, None, spec.channels
    train, test, names = read_npz(Path(spec.root))
    height, width, channels = train.images.shape[1:]
    if height != width and spec.image_size is None:
        raise UserError(f"{spec.root}: images are {height}x{width}; name the \"image_size\" they should be resized to")
    return len(names), height, channels


def _count_class_folders(spec: DatasetSpec) -> int | None:
    folder = Path(spec.train) if spec.train else Path(spec.root or "") / ("" if spec.split else "train")
    return len(class_folders(folder)) or None if (spec.train or spec.root) and folder.is_dir() else None


def _domain_names(spec: DatasetSpec) -> tuple[str, ...]:
    if spec.layout == "synthetic" and spec.num_domains > 1:
        return tuple(f"domain {i}" for i in range(spec.num_domains))
    return tuple(spec.domains or ())


def _select_classes(train: ImageSet, test: ImageSet, names: list[str], spec: DatasetSpec) -> Splits:
    """Keep the classes that the config lists; they are numbered anew in the listed order."""
    numbers = {name: i for i, name in enumerate(names)}
    chosen = [numbers.get(c, -1) if isinstance(c, str) else c for c in spec.classes or []]
    for wanted, number in zip(spec.classes or [], chosen):
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
