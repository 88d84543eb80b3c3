"""Every data set the project knows: the registered ones, and those a config describes (`DatasetSpec`).

`dataset_info` tells what can be known without reading an image (a dry run needs no data); `load_dataset` gives the
training set, the test set and the class names. A new benchmark is one entry in REGISTRY.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from utils.config import DatasetSpec
from utils.data.arrays import load_digits, load_torchvision, make_synthetic
from utils.data.described import load_spec, spec_info
from utils.data.domains import read_domains
from utils.data.folders import find_test_folder, read_folders
from utils.data.notes import tell
from utils.data.official import (
    Entry,
    Files,
    FolderFiles,
    cars_entries,
    cub_entries,
    entry_sets,
    folder_entries,
    imagenet_r_entries,
    resisc_entries,
    sketch_entries,
    write_split,
)
from utils.data.places import home_expanded
from utils.data.types import IMAGENET_MEAN, IMAGENET_STD, DataMissing, DatasetInfo, ImageSet, Splits
from utils.data.walk import is_image
from utils.errors import UserError

__all__ = ["REGISTRY", "DatasetInfo", "ImageSet", "Registered", "count_images", "dataset_info", "list_datasets", "load_dataset",
           "register_dataset"]

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
DOMAINS = ("real", "quickdraw", "painting", "sketch", "infograph", "clipart")  # DomainNet's order in DUCT and E2-LoRA

EntryReader = Callable[[Files], "list[Entry]"]


@dataclass(frozen=True)
class Registered:
    """One line of `python main.py list datasets`."""

    info: DatasetInfo
    load: Callable[[Path], Splits]  # data_root -> train, test, class names
    entries: EntryReader | None = None  # benchmarks in files: the official layout, for loading and for prepare


def _cifar(name: str, num_classes: int, image_size: int) -> Registered:
    mean, std = (CIFAR10_MEAN, CIFAR10_STD) if num_classes == 10 else (CIFAR100_MEAN, CIFAR100_STD)
    transforms = ("crop32_jitter", "none") if image_size == 32 else ("crop224_jitter", "resize256_crop224")
    info = DatasetInfo(name, num_classes, image_size, 3, mean, std, *transforms, train_count=50_000, test_count=10_000,
                       folder="cifar-10-batches-py" if num_classes == 10 else "cifar-100-python",
                       source="https://www.cs.toronto.edu/~kriz/cifar.html, downloaded by torchvision")
    return Registered(info, lambda root: load_torchvision(f"CIFAR{num_classes}", root))


def _benchmark(name: str, num_classes: int, folder: str, source: str, entries: EntryReader, train_count: int | None,
               test_count: int | None, train_transform: str = "resize300_crop224", test_transform: str = "resize256_crop224") -> Registered:
    """Photos at 224 px with ImageNet's statistics, in the release's folder: {train,val}/<class>/ or the official layout."""
    info = DatasetInfo(name, num_classes, 224, 3, IMAGENET_MEAN, IMAGENET_STD, train_transform, test_transform, train_count,
                       test_count, folder=folder, source=source)
    return Registered(info, lambda root: _load_benchmark(info, entries, root), entries)


def _load_benchmark(info: DatasetInfo, entries: EntryReader, data_root: Path) -> Splits:
    folder = data_root / info.folder
    _need_folder(info, folder, data_root)
    if (folder / "train").is_dir():
        return read_folders(folder / "train", find_test_folder(folder) or folder / "val")
    files = FolderFiles(folder)
    found = entries(files)
    if entries is imagenet_r_entries:
        write_split(folder, found)
    train, test, names = entry_sets(found, folder)
    unlisted = sorted({name for name in files.names() if is_image(name)} - {entry.path for entry in found})
    if unlisted:
        train = train.noted(f"{len(unlisted)} images under {folder}/ are in none of its lists and are left out, the first is {unlisted[0]}")
    return train, test, names


def _load_domainnet(info: DatasetInfo, data_root: Path) -> Splits:
    folder = data_root / info.folder
    _need_folder(info, folder, data_root)
    return read_domains(folder, info.domains, None)


def _need_folder(info: DatasetInfo, folder: Path, data_root: Path) -> None:
    if not os.path.isdir(folder):
        raise DataMissing(f"data set {info.name} is not there: folder {os.path.abspath(folder)}/ does not exist; get it from "
                          f"{info.source}, then run python main.py prepare {info.name} --source ARCHIVE_OR_FOLDER --root {data_root}")


_DOMAINNET = DatasetInfo("domainnet", 345, 224, 3, IMAGENET_MEAN, IMAGENET_STD, "crop224", "resize256_crop224", 409_832, 176_743,
                         domains=DOMAINS, folder="domainnet", source="https://ai.bu.edu/M3SDA/ (cleaned version)")

REGISTRY: dict[str, Registered] = {entry.info.name: entry for entry in (
    _cifar("cifar10", 10, 32),
    _cifar("cifar100", 100, 32),
    _cifar("cifar10_224", 10, 224),
    _cifar("cifar100_224", 100, 224),
    _benchmark("imagenet-r", 200, "imagenet-r", "https://github.com/hendrycks/imagenet-r", imagenet_r_entries, 24_000, 6_000, "crop224"),
    _benchmark("cub200_224", 200, "cub_200", "https://www.vision.caltech.edu/datasets/cub_200_2011/", cub_entries, 5_994, 5_794),
    _benchmark("cars196_224", 196, "cars196", "Stanford Cars (its own page is gone; see docs/datasets.md)", cars_entries, 8_144, 8_041),
    _benchmark("resisc45", 45, "resisc45", "NWPU-RESISC45 (see docs/datasets.md)", resisc_entries, 25_200, 6_300),
    _benchmark("sketch345_224", 345, "sketch345", "https://ai.bu.edu/M3SDA/ (domain sketch, cleaned version)", sketch_entries,
               48_212, 20_916),
    _benchmark("imagenet100", 100, "imagenet100", "https://www.image-net.org (100 classes of your choice)", folder_entries, None, None,
               "crop224_bilinear", "resize256_crop224_bilinear"),
    _benchmark("imagenet1000", 1000, "imagenet1000", "https://www.image-net.org", folder_entries, 1_281_167, 50_000,
               "crop224_bilinear_jitter", "resize256_crop224_bilinear"),
    Registered(_DOMAINNET, lambda root: _load_domainnet(_DOMAINNET, root)),
    Registered(DatasetInfo("fashion_mnist", 10, 28, 1, (0.2860,), (0.3530,), "none", "none", 60_000, 10_000, folder="FashionMNIST",
                           source="https://github.com/zalandoresearch/fashion-mnist, downloaded by torchvision"),
               lambda root: load_torchvision("FashionMNIST", root)),
    Registered(DatasetInfo("digits", 10, 28, 1, (0.3088,), (0.3489,), "none", "none", 1_438, 359, source="comes with scikit-learn"),
               lambda root: load_digits()),
    Registered(DatasetInfo("synthetic", 20, 32, 3, (0.5,) * 3, (0.25,) * 3, "none", "none", 400, 200, source="made in memory"),
               lambda root: make_synthetic(20, 20, 10, 32, 3)),
)}


def register_dataset(entry: Registered) -> None:
    """Add a data set, for a plugin. Raises UserError when its name is taken."""
    name = entry.info.name
    if name in REGISTRY:
        raise UserError(f"data set {name!r} exists already; choose another name (python main.py list datasets shows those taken)")
    REGISTRY[name] = entry


def list_datasets() -> list[DatasetInfo]:
    """The registered data sets, for `python main.py list datasets`."""
    return [entry.info for entry in REGISTRY.values()]


def dataset_info(dataset: str | DatasetSpec, data_root: str = "data") -> DatasetInfo:
    """What is known about `dataset` without reading an image.

    Raises:
        UserError: no such data set, or a description that contradicts itself.
    """
    return registered(dataset).info if isinstance(dataset, str) else spec_info(dataset)


def count_images(dataset: str | DatasetSpec, data_root: str = "data") -> tuple[int | None, int | None]:
    """Training and test images: the published numbers, else those of the files; None where they are not there.

    Raises:
        UserError: no such data set, a description that contradicts itself, or files that are wrong.
    """
    info = dataset_info(dataset, data_root)
    if info.train_count is None or info.test_count is None:
        try:
            train, test, _ = load_dataset(dataset, data_root)
        except DataMissing:
            return info.train_count, info.test_count
        return len(train), len(test)
    return info.train_count, info.test_count


def load_dataset(dataset: str | DatasetSpec, data_root: str = "data") -> Splits:
    """Training set, test set and class names of `dataset`; images in files are listed, not read.

    What the reader passed over or took otherwise is logged, and stands in the training set's `notes`.

    Raises:
        DataMissing: the data set is not on this machine; says what to place where.
        UserError: its files are incomplete or wrong.
    """
    if not isinstance(dataset, str):
        return load_spec(dataset)
    entry = registered(dataset)
    train, test, names = entry.load(home_expanded(data_root))
    notes = [*train.notes, *_compare_counts(entry.info, len(train), len(test), len(names))]
    return replace(train, notes=tell(f"data set {dataset}", notes)), test, names


def registered(name: str) -> Registered:
    """The registry's entry. Raises UserError, with the nearest name."""
    if name in REGISTRY:
        return REGISTRY[name]
    near = difflib.get_close_matches(name, REGISTRY, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "for your own images give an object, see docs/own_data.md"
    raise UserError(f"dataset: got {name!r}, allowed: {', '.join(REGISTRY)}; {hint}")


def _compare_counts(info: DatasetInfo, train: int, test: int, classes: int) -> list[str]:
    """Another split than the field's gives other numbers: a note, but it may run. Raises UserError for other classes."""
    if classes != info.num_classes:
        raise UserError(f"data set {info.name}: found {classes} classes under {info.folder}, expected {info.num_classes}")
    if None in (info.train_count, info.test_count) or (train, test) == (info.train_count, info.test_count):
        return []
    swapped = " (train and test are swapped)" if (test, train) == (info.train_count, info.test_count) else ""
    return [f"{train} training and {test} test images, the published split has {info.train_count} and {info.test_count}{swapped}; "
            "accuracies will not compare"]
