"""Which images are training, validation and test images of which task."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from utils.config import Config
from utils.data.blurry import plan_blurry
from utils.data.held_out import validation_members
from utils.data.opened import OpenedImages
from utils.data.protocols import chosen_images, digest_of
from utils.data.stream import TaskStream
from utils.data.tasks import order_by_seed


@dataclass(frozen=True)
class Split:
    """The images of one split that take part, as positions in a store."""

    store: str  # "train" or "test"
    labels: np.ndarray  # (N,) int64 new labels of all images of the store
    members: np.ndarray  # (n,) int64 ascending: which of them belong to the split
    tasks: np.ndarray | None = None  # (N,) int64 the task in which each comes; None: that of its class

    def tasks_of_members(self, stream: TaskStream) -> np.ndarray:
        """(n,) int64: the task of each member."""
        return stream.task_of_class[self.labels[self.members]] if self.tasks is None else self.tasks[self.members]


def make_splits(config: Config, seed: int, stream: TaskStream, images: OpenedImages,
                labels: dict[str, np.ndarray]) -> tuple[dict[str, Split], str]:
    """The splits "train", "val" and "test", and in a blurry stream "again"; with a digest of what a protocol chose.

    "again" holds the images that come in a later task than their class; they are training images of that task.

    Args:
        labels: per store, (N,) int64 new labels of all its images.

    Raises:
        UserError: the images are too few for the protocol.
    """
    members, digest = np.arange(images.count("train")), ""
    again = members[:0]
    tasks = None
    if images.learned is None:
        if config.blurry is not None:
            tasks = _blurry_tasks(config, seed, stream, images, labels["train"])
            early = stream.task_of_class[labels["train"]] == tasks
            members, again, digest = np.flatnonzero(early), np.flatnonzero(~early), digest_of(tasks)
        elif config.few_shot is not None or config.long_tail is not None:
            own = len(images.parts[0].train)  # images of added tasks are all taken
            taken = chosen_images(config, seed, stream, images.parts[0].train, labels["train"][:own])
            members, digest = np.concatenate([taken, members[own:]]), digest_of(taken)
    held_out = members[validation_members(labels["train"][members], config.val_fraction, _sizes(members, images))]
    splits = {"train": Split("train", labels["train"], np.setdiff1d(members, held_out)),
              "val": Split("train", labels["train"], held_out),
              "again": Split("train", labels["train"], again, tasks),
              "test": Split("test", labels["test"], np.arange(images.count("test")))}
    return splits, digest


def _blurry_tasks(config: Config, seed: int, stream: TaskStream, images: OpenedImages, labels: np.ndarray) -> np.ndarray:
    """(N,) int64: the task in which each training image comes; images of added tasks come with their class."""
    assert config.blurry is not None, "asked for by the caller"
    own, names = images.parts[0].train.labels, images.parts[0].names
    plan = plan_blurry(config.blurry, own, order_by_seed(config, len(names), seed), seed)
    return np.concatenate([plan.task_of_image, stream.task_of_class[labels[len(own):]]])


def _sizes(members: np.ndarray, images: OpenedImages) -> list[int]:
    """How many of `members` each place of images gives."""
    ends = np.cumsum([0, *(len(part.train) for part in images.parts)])
    return [int(((members >= start) & (members < end)).sum()) for start, end in itertools.pairwise(ends)]
