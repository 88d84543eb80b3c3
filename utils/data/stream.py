"""The stream of tasks as plain facts: what a checkpoint keeps of the data, so that a prediction needs no data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from utils.images.transforms import Transform, make_transform

if TYPE_CHECKING:
    from utils.data.data_manager import DataManager


@dataclass(frozen=True)
class Stream:
    """Tasks and classes as `DataManager` gives them, and how an image becomes the network's input.

    Stands where a learner expects a DataManager; it has no batches.
    """

    class_order: list[int]  # (K,) class_order[new label] = the data set's own label
    task_sizes: list[int]  # (T,) classes (slots) of each task
    class_names: list[str]  # (K,) in learning order; domain scenario: "domain/class"
    label_period: int | None  # domain scenario: number of classes
    image_size: int  # pixels a side
    channels: int
    mean: list[float]  # per channel, of pixels in [0, 1]
    std: list[float]
    test_transform: str  # a name that utils/images/transforms.py knows

    @property
    def num_tasks(self) -> int:
        return len(self.task_sizes)

    @property
    def num_classes(self) -> int:
        return sum(self.task_sizes)

    @property
    def task_of_class(self) -> np.ndarray:
        """(K,) int64."""
        return np.repeat(np.arange(self.num_tasks), self.task_sizes)

    def classes_before(self, task: int) -> int:
        return sum(self.task_sizes[:task])

    def classes_upto(self, task: int) -> int:
        return sum(self.task_sizes[: task + 1])

    def transform(self) -> Transform:
        """The test transform: uint8 images to the network's input (N, channels, image_size, image_size)."""
        return make_transform(self.test_transform, self.image_size, self.mean, self.std)


def stream_of(data: DataManager) -> Stream:
    """The facts of a data manager that its checkpoints keep."""
    transform = data._pool.maker.transforms[False]  # the test transform
    return Stream(list(data.class_order), list(data.task_sizes), list(data.class_names), data.label_period, transform.size,
                  transform.channels, transform.mean.flatten().tolist(), transform.std.flatten().tolist(), data.info.test_transform)
