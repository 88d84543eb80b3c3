"""What is known of a registered set beside its images: its splits, its archives, its licence. A new benchmark is one `Benchmark`."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from utils.data.entries import Entry, EntryReader
from utils.data.paths import Paths
from utils.data.types import ImageSet

NOT_PUBLISHED = "not a published split"
OTHER_DRAW = "another draw of the published numbers"  # as papers on ImageNet-R have them, each its own


@dataclass(frozen=True)
class Split:
    """One division of a set into training and test images that results are published on."""

    name: str  # "official", "LAMDA-PILOT", "80/20 per class, seed 0"
    train: int | None = None  # images; None: no number was published
    test: int | None = None
    per_class: tuple[int, int] | None = None  # training and test images of every class, where all have as many
    sure: bool = True  # False: from tables of papers, in no public code that was read; another number is told, not refused
    drawn: Callable[[Sequence[str]], list[Entry]] | None = None  # a split of ours: from "class/file" of all images, with the
    #   domain's number before it where a set has domains
    first_class: str = ""  # how its first class is named, where the splits' classes have other names

    def counts(self, train: int, test: int) -> bool:
        """Whether it has so many images."""
        return self.train in (None, train) and self.test in (None, test)


@dataclass(frozen=True)
class Archive:
    """A file to download."""

    file: str  # its name; with a folder before it where two sets name theirs alike
    gigabytes: float | None  # about; None: its source does not say
    url: str = ""  # "" where a browser or an account is needed
    md5: str = ""  # as its source, or torchvision, publishes it


@dataclass(frozen=True)
class Card:
    """Where a set comes from and what its splits are."""

    splits: tuple[Split, ...] = ()  # the first one is the table's
    archives: tuple[Archive, ...] = ()
    licence: str = ""
    layout: str = ""  # of the official files, in words
    checked: str = ""  # the public code that says so: repository, file, commit

    @property
    def size(self) -> str:
        """Of all archives: "0.34 GB", "5 GB", "145 GB"; "not stated" where one does not say its own."""
        sizes = [archive.gigabytes for archive in self.archives]
        if not sizes or None in sizes:
            return "not stated"
        total = sum(filter(None, sizes))
        return f"{total:.0f} GB" if total >= 10 else f"{total:.2g} GB"


@dataclass(frozen=True)
class Benchmark:
    """One row of the table in utils/data/benchmarks.py: photos at 224 px with ImageNet's mean and standard deviation."""

    name: str
    num_classes: int
    folder: str  # under data_root; torchvision's where it has the set
    entries: EntryReader
    source: str
    card: Card
    train_transform: str = "crop224"
    test_transform: str = "resize256_crop224"
    domains: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()  # folders whose pictures belong to no class, so that nothing is said of them
    official_file: str = ""  # lies under `folder` where that holds the official layout, though it has a train/ as prepared sets have


def split_words(splits: Sequence[Split], train: ImageSet, test: ImageSet, names: Sequence[str]) -> str:
    """Which of `splits` the images are: "official, 5,994 / 5,794"; else their numbers and a digest of the test images' names.

    Two runs have the same words if they have the same split.
    """
    numbers = f"{len(train):,} / {len(test):,}"
    for split in splits:
        known = "".join(names[:1]).startswith(split.first_class) and (split.drawn is None or _is_drawn(split, train, test, names))
        if known and split.counts(len(train), len(test)):
            return f"{split.name}, {numbers}"
    if isinstance(test.images, np.ndarray):
        return f"{numbers}, {NOT_PUBLISHED}"
    digest = hashlib.blake2b("\n".join(sorted(_short_names(test, names))).encode(errors="surrogateescape"), digest_size=4).hexdigest()
    drawn_otherwise = any(split.drawn and split.train is not None and split.counts(len(train), len(test)) for split in splits)
    return f"{numbers}, {OTHER_DRAW if drawn_otherwise else NOT_PUBLISHED} (test images {digest})"


def wrong_classes(split: Split, entries: Sequence[Entry]) -> list[str]:
    """Classes with other numbers of images than the split has of every class; in words, empty where all is right."""
    if split.per_class is None:
        return []
    counts = Counter((entry.label, entry.test) for entry in entries)
    found = [(label, counts[label, False], counts[label, True]) for label in sorted({entry.label for entry in entries})]
    return [f"class {label!r} has {train} training and {test} test images, expected {split.per_class[0]} and {split.per_class[1]}"
            for label, train, test in found if (train, test) != split.per_class]


def _is_drawn(split: Split, train: ImageSet, test: ImageSet, names: Sequence[str]) -> bool:
    """Whether the test images are those that the split's own rule draws from all images."""
    if split.drawn is None or not isinstance(train.images, Paths) or not isinstance(test.images, Paths):
        return False
    chosen = _short_names(test, names)
    return set(chosen) == {entry.path for entry in split.drawn([*_short_names(train, names), *chosen]) if entry.test}


def _short_names(images: ImageSet, names: Sequence[str]) -> list[str]:
    """"class/file" of every image, with its domain's number before it if there are domains; the same for the official and for the
    prepared layout.
    """
    assert isinstance(images.images, Paths), "arrays have no names"
    short = [f"{names[label]}/{name.decode(errors='surrogateescape')}" for label, name in
             zip(images.labels.tolist(), images.images.names, strict=True)]
    return short if images.domains is None else [f"{domain}/{name}" for domain, name in zip(images.domains.tolist(), short, strict=True)]
