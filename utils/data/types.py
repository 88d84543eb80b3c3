"""What the data layer hands around: one split of a data set, and what is known about a set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from utils.data.paths import Paths
from utils.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DataMissing(UserError):
    """The data set is not on this machine at all: a run stops, a dry run goes on with what the config says."""


@dataclass(frozen=True)
class ImageSet:
    """One split of one data set."""

    images: np.ndarray | Paths  # (N, H, W, C) uint8, or N image files
    labels: np.ndarray  # (N,) int64, the data set's own labels 0..num_classes-1
    domains: np.ndarray | None = None  # (N,) int64 domain of each image, sets with domains only
    notes: tuple[str, ...] = ()  # what the reader passed over or reinterpreted; the training set's speak of the whole data set
    split: str = ""  # which images train and which test, in words; on the training set, "" where nobody gave it a name

    def __post_init__(self) -> None:
        assert len(self.images) == len(self.labels), f"{len(self.images)} images, {len(self.labels)} labels"

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, keep: np.ndarray) -> ImageSet:
        """The images at the positions `keep` (n,) int64, in that order."""
        return replace(self, images=self.images[keep], labels=self.labels[keep],
                       domains=None if self.domains is None else self.domains[keep])

    def noted(self, *notes: str) -> ImageSet:
        """The same images with more notes."""
        return replace(self, notes=self.notes + notes) if notes else self


Splits = tuple[ImageSet, ImageSet, "list[str]"]  # train, test, class names


@dataclass(frozen=True)
class DatasetInfo:
    """All that is known about a data set without reading any image."""

    name: str
    num_classes: int | None  # None: a folder that is not there yet
    image_size: int  # pixels a side, after the transforms
    channels: int
    mean: tuple[float, ...]  # per channel, of pixels in [0, 1]
    std: tuple[float, ...]
    train_transform: str | list[Any]  # names understood by utils/images/transforms.py
    test_transform: str
    train_count: int | None = None
    test_count: int | None = None
    domains: tuple[str, ...] = ()  # names, in the set's own order
    fixed_domain_order: bool = False  # the user listed them: never shuffled
    class_order: tuple[int | str, ...] | None = None  # as the config writes it; overrides shuffle and seed
    class_names: tuple[str, ...] | None = None  # by label; None where they are not known without the images
    folder: str = ""  # under data_root
    source: str = ""  # where to get it, and its licence


def members_by_group(groups: np.ndarray) -> list[np.ndarray]:
    """Positions (n_g,) int64, ascending, of the members of each group that occurs, groups in ascending order."""
    if not len(groups):
        return []
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
