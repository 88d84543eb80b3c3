"""Every data set the project knows: the registered ones, and those a config describes (`DatasetSpec`).

`dataset_info` tells what can be known without reading an image (a dry run needs no data); `load_dataset` gives the
training set, the test set and the class names. A new benchmark is one entry in REGISTRY.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from utils.config import DatasetSpec
from utils.data.arrays import load_digits, load_torchvision, make_synthetic
from utils.data.benchmarks import BENCHMARKS
from utils.data.cards import NOT_PUBLISHED, Archive, Benchmark, Card, Split, split_words
from utils.data.described import load_spec, spec_info
from utils.data.domains import read_domains
from utils.data.entries import Entry, EntryReader, Files, FolderFiles, entry_sets
from utils.data.five_datasets import FIVE_ARCHIVES, load_five_datasets
from utils.data.folders import find_test_folder, read_folders
from utils.data.index import indexed
from utils.data.notes import tell
from utils.data.official import imagenet_r_entries, write_split
from utils.data.places import home_expanded
from utils.data.types import IMAGENET_MEAN, IMAGENET_STD, DataMissing, DatasetInfo, ImageSet, Splits
from utils.data.walk import is_image
from utils.errors import UserError

__all__ = ["REGISTRY", "DatasetInfo", "Entry", "EntryReader", "Files", "ImageSet", "Registered", "count_images", "dataset_info",
           "imagenet_r_entries", "list_datasets", "load_dataset", "register_benchmark", "register_dataset"]

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
DOMAINS = ("real", "quickdraw", "painting", "sketch", "infograph", "clipart")  # DomainNet's order in DUCT and E2-LoRA


@dataclass(frozen=True)
class Registered:
    """One line of `python main.py list datasets`."""

    info: DatasetInfo
    load: Callable[[Path], Splits]  # data_root -> train, test, class names
    entries: EntryReader | None = None  # benchmarks in files: the official layout, for loading and for prepare
    card: Card = field(default_factory=Card)  # splits, archives, licence

    @property
    def splits(self) -> tuple[Split, ...]:
        """Those that results are published on; the first has the numbers that the info announces."""
        if not self.card.splits:
            return ()
        first, *others = self.card.splits
        announced = self.info.train_count, self.info.test_count
        per_class = first.per_class if announced == (first.train, first.test) else None
        return replace(first, train=announced[0], test=announced[1], per_class=per_class), *others


def _torchvision(name: str, kind: str, num_classes: int, image_size: int, channels: int, mean: tuple[float, ...], std: tuple[float, ...],
                 transforms: tuple[str, str], train_count: int, folder: str, page: str, archives: tuple[Archive, ...],
                 licence: str) -> Registered:
    """A set whose images are arrays that torchvision reads, and downloads."""
    source = f"{page}, downloaded by torchvision"
    info = DatasetInfo(name, num_classes, image_size, channels, mean, std, *transforms, train_count=train_count, test_count=10_000,
                       folder=folder, source=source)
    card = Card((Split("official", train_count, 10_000),), archives, licence, "torchvision's", "torchvision 0.29.1 datasets/")
    return Registered(info, lambda root: load_torchvision(kind, root), card=card)


def _cifar(name: str, num_classes: int, image_size: int) -> Registered:
    mean, std = (CIFAR10_MEAN, CIFAR10_STD) if num_classes == 10 else (CIFAR100_MEAN, CIFAR100_STD)
    transforms = ("crop32_jitter", "none") if image_size == 32 else ("crop224_jitter", "resize256_crop224")
    archive = FIVE_ARCHIVES[0] if num_classes == 10 else Archive(
        "cifar-100-python.tar.gz", 0.17, "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85")
    return _torchvision(name, f"CIFAR{num_classes}", num_classes, image_size, 3, mean, std, transforms, 50_000,
                        "cifar-10-batches-py" if num_classes == 10 else "cifar-100-python", "https://www.cs.toronto.edu/~kriz/cifar.html",
                        (archive,), "none stated; cite the report")


def _benchmark(row: Benchmark) -> Registered:
    """A set of photos in files: {train,val}/<class>/ as the authors' release and `prepare` have it, or the official layout."""
    first = row.card.splits[0] if row.card.splits else Split("")
    info = DatasetInfo(row.name, row.num_classes, 224, 3, IMAGENET_MEAN, IMAGENET_STD, row.train_transform, row.test_transform, first.train,
                       first.test, domains=row.domains, folder=row.folder, source=row.source)
    return Registered(info, lambda root: _load_benchmark(info, row, root), row.entries, row.card)


def _load_benchmark(info: DatasetInfo, row: Benchmark, data_root: Path) -> Splits:
    folder = data_root / info.folder
    _need_folder(info, folder, data_root)
    return indexed(folder, data_root / "cache", row.name, lambda: _read_benchmark(row, folder))


def _read_benchmark(row: Benchmark, folder: Path) -> Splits:
    official = bool(row.official_file) and (folder / row.official_file).exists()
    if row.domains and all((folder / domain / "train").is_dir() for domain in row.domains):
        return read_domains(folder, row.domains, None)
    if (folder / "train").is_dir() and not official and not row.domains:
        return read_folders(folder / "train", find_test_folder(folder) or folder / "val")
    files = FolderFiles(folder)
    found = row.entries(files)
    if row.entries is imagenet_r_entries:
        write_split(folder, found)
    train, test, names = entry_sets(found, folder, row.domains)
    unlisted = sorted({name for name in files.names() if is_image(name)} - {entry.path for entry in found})
    unlisted = [name for name in unlisted if not set(PurePosixPath(name).parts) & set(row.beside)]
    if unlisted:
        train = train.noted(f"{len(unlisted)} images under {folder}/ are in none of its lists and are left out, the first is {unlisted[0]}")
    return train, test, names


def _load_domainnet(info: DatasetInfo, data_root: Path) -> Splits:
    folder = data_root / info.folder
    _need_folder(info, folder, data_root)
    return indexed(folder, data_root / "cache", f"{info.name} {info.domains}", lambda: read_domains(folder, info.domains, None))


def _need_folder(info: DatasetInfo, folder: Path, data_root: Path) -> None:
    if not os.path.isdir(folder):
        raise DataMissing(f"data set {info.name} is not there: folder {os.path.abspath(folder)}/ does not exist; get it from "
                          f"{info.source}, then run python main.py prepare {info.name} --source ARCHIVE_OR_FOLDER --root {data_root}")


_DOMAINNET = DatasetInfo("domainnet", 345, 224, 3, IMAGENET_MEAN, IMAGENET_STD, "crop224", "resize256_crop224", 409_832, 176_743,
                         domains=DOMAINS, folder="domainnet", source="https://ai.bu.edu/M3SDA/ (cleaned version)")
_DOMAINNET_CARD = Card((Split("official", 409_832, 176_743),), (Archive("six zips and twelve lists", 18.0),),
                       "non-commercial research, fair use", "`<domain>/<class>/*`, `<domain>_train.txt`, `<domain>_test.txt`",
                       "RanPAC trainer.py 698e00c (order)")
_FIVE = DatasetInfo("five_datasets", 50, 224, 3, IMAGENET_MEAN, IMAGENET_STD, "crop224", "resize256_crop224", folder="five_datasets",
                    source="CIFAR-10, MNIST, Fashion-MNIST, SVHN, notMNIST (see docs/datasets.md)")
_FIVE_CARD = Card((Split("official, of each set"),), FIVE_ARCHIVES, "that of each set; notMNIST: none stated",
                  "torchvision's four, and `notMNIST/{Train,Test}/<A to J>/*.png`",
                  "l2p-pytorch datasets.py 62c1dae, continual_datasets.py 87a352d")
_MADE = Card((Split("80/20 per class, seed 0"),), (), "BSD (scikit-learn)", "comes with scikit-learn")
_FASHION = tuple(replace(archive, file=archive.file.rpartition("/")[2]) for archive in FIVE_ARCHIVES if archive.file.startswith("fashion/"))

REGISTRY: dict[str, Registered] = {entry.info.name: entry for entry in (
    _cifar("cifar10", 10, 32),
    _cifar("cifar100", 100, 32),
    _cifar("cifar10_224", 10, 224),
    _cifar("cifar100_224", 100, 224),
    *map(_benchmark, BENCHMARKS),
    Registered(_DOMAINNET, lambda root: _load_domainnet(_DOMAINNET, root), card=_DOMAINNET_CARD),
    Registered(_FIVE, lambda root: _load_five(_FIVE, root), card=_FIVE_CARD),
    _torchvision("fashion_mnist", "FashionMNIST", 10, 28, 1, (0.2860,), (0.3530,), ("none", "none"), 60_000, "FashionMNIST",
                 "https://github.com/zalandoresearch/fashion-mnist", _FASHION, "MIT"),
    Registered(DatasetInfo("digits", 10, 28, 1, (0.3088,), (0.3489,), "none", "none", 1_438, 359, source="comes with scikit-learn"),
               lambda root: load_digits(), card=_MADE),
    Registered(DatasetInfo("synthetic", 20, 32, 3, (0.5,) * 3, (0.25,) * 3, "none", "none", 400, 200, source="made in memory"),
               lambda root: make_synthetic(20, 20, 10, 32, 3)),
)}


def _load_five(info: DatasetInfo, data_root: Path) -> Splits:
    folder = data_root / info.folder
    _need_folder(info, folder, data_root)
    return load_five_datasets(folder)


def register_benchmark(row: Benchmark) -> None:
    """Add a set of photos in files by its record, for a plugin. Raises UserError when its name is taken."""
    register_dataset(_benchmark(row))


def register_dataset(entry: Registered) -> None:
    """Add a data set, for a plugin. Raises UserError when its name is taken."""
    name = entry.info.name
    if name in REGISTRY:
        raise UserError(f"data set {name!r} exists already; choose another name (python main.py list datasets shows those taken)")
    REGISTRY[name] = entry


def list_datasets() -> list[DatasetInfo]:
    """The registered data sets, for `python main.py list datasets`."""
    return [entry.info for entry in REGISTRY.values()]


def dataset_info(dataset: str | DatasetSpec) -> DatasetInfo:
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
    info = dataset_info(dataset)
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
    split = split_words(entry.splits, train, test, names) if entry.splits else ""
    notes = [*train.notes, *_compare_counts(entry.info, len(train), len(test), len(names), split)]
    return replace(train, notes=tell(f"data set {dataset}", notes), split=split), test, names


def registered(name: str) -> Registered:
    """The registry's entry. Raises UserError, with the nearest name."""
    if name in REGISTRY:
        return REGISTRY[name]
    near = difflib.get_close_matches(name, REGISTRY, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "for your own images give an object, see docs/own_data.md"
    raise UserError(f"dataset: got {name!r}, allowed: {', '.join(REGISTRY)}; {hint}")


def _compare_counts(info: DatasetInfo, train: int, test: int, classes: int, split: str) -> list[str]:
    """Another split than the field's gives other numbers: a note, but it may run. Raises UserError for other classes."""
    if classes != info.num_classes:
        raise UserError(f"data set {info.name}: found {classes} classes under {info.folder}, expected {info.num_classes}")
    if None in (info.train_count, info.test_count) or (train, test) == (info.train_count, info.test_count):
        return []
    if split and NOT_PUBLISHED not in split:  # another one that results are published on
        return []
    swapped = " (train and test are swapped)" if (test, train) == (info.train_count, info.test_count) else ""
    return [f"{train} training and {test} test images, the published split has {info.train_count} and {info.test_count}{swapped}; "
            "accuracies will not compare"]
