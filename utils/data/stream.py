"""The stream of tasks as plain facts, the one place that knows which class is learned when; and how an image becomes input.

A `TaskStream` is made by utils/data/tasks.py; data manager, learner and checkpoint share it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from utils.images.transforms import Transform, make_transform


@dataclass(frozen=True)
class TaskStream:
    """Tasks and classes. Labels are new ones throughout: a class's position in the class order, or in the domain scenario the
    slot class + task * C, so that every domain has a head of its own and a prediction is the slot modulo C.
    """

    class_order: list[int]  # (K,) class_order[new label] = the data set's own label; domain scenario: slot -> slot (identity)
    task_sizes: list[int]  # (T,) classes (slots) of each task
    label_period: int | None = None  # domain scenario: C; two slots with the same label modulo C are one class
    domain_order: list[int] | None = None  # domain scenario: the data set's numbers of the domains, in the order of learning
    class_names: list[str] = field(default_factory=list)  # (K,) in learning order, "domain/class"; empty where no data was seen
    domains_per_task: int = 1  # domain scenario: how many of domain_order make a task, the last task takes the rest
    chosen: str = ""  # digest of which training images a protocol takes, and when; empty: each class gives all to its task

    @property
    def num_tasks(self) -> int:
        return len(self.task_sizes)

    @property
    def num_classes(self) -> int:
        """K, slots in the domain scenario."""
        return sum(self.task_sizes)

    @cached_property
    def task_of_class(self) -> np.ndarray:
        """(K,) int64: the task of each new label."""
        return np.repeat(np.arange(self.num_tasks), self.task_sizes)

    @cached_property
    def _ends(self) -> list[int]:
        return np.cumsum([0, *self.task_sizes]).tolist()

    def classes_before(self, task: int) -> int:
        """Classes learned before `task`."""
        return self._ends[task]

    def classes_upto(self, task: int) -> int:
        """Classes seen once `task` is learned."""
        return self._ends[task + 1]

    def classes_of(self, task: int) -> range:
        """New labels of the classes of `task`."""
        return range(self._ends[task], self._ends[task + 1])

    @property
    def task_of_domain(self) -> np.ndarray:
        """(D,) int64: the task of each of the data set's domains."""
        assert self.domain_order is not None, "a stream of classes has no domains"
        return np.argsort(self.domain_order) // self.domains_per_task

    def domains_of(self, task: int) -> list[int]:
        """The data set's numbers of the domains of `task`."""
        assert self.domain_order is not None, "a stream of classes has no domains"
        return self.domain_order[task * self.domains_per_task:(task + 1) * self.domains_per_task]

    def with_task(self, names: Sequence[str]) -> TaskStream:
        """One task more, of new classes with these names, whose own labels follow the others'; domain scenario: of one domain more."""
        known = self.num_classes
        if self.domain_order is not None:
            return replace(self, domain_order=[*self.domain_order, len(self.domain_order)], class_order=[*range(known + len(names))],
                           task_sizes=[*self.task_sizes, len(names)], class_names=[*self.class_names, *names])
        return replace(self, class_order=[*self.class_order, *range(known, known + len(names))],
                       task_sizes=[*self.task_sizes, len(names)], class_names=[*self.class_names, *names])

    def joined(self, other: TaskStream) -> TaskStream:
        """These tasks, then those of `other`, whose classes are others."""
        return replace(self, class_order=[*self.class_order, *(self.num_classes + label for label in other.class_order)],
                       task_sizes=[*self.task_sizes, *other.task_sizes], class_names=[*self.class_names, *other.class_names])

    def without(self, labels: Collection[int]) -> TaskStream:
        """The same without these classes (new labels); the others keep their order, and are numbered anew. A task may be left empty."""
        kept = [label for label in range(self.num_classes) if label not in labels]
        own = [self.class_order[label] for label in kept]
        rank = {label: position for position, label in enumerate(sorted(own))}
        sizes = np.bincount(self.task_of_class[kept], minlength=self.num_tasks).tolist()
        return replace(self, class_order=[rank[label] for label in own], task_sizes=sizes,
                       class_names=[self.class_names[label] for label in kept])

    def names_by_own_label(self) -> list[str]:
        """(K,) class names by the data set's own label."""
        names = [""] * self.num_classes
        for name, label in zip(self.class_names, self.class_order, strict=True):
            names[label] = name
        return names


@dataclass(frozen=True)
class InputFormat:
    """How an image becomes the network's input when nothing is augmented."""

    image_size: int  # pixels a side
    channels: int
    mean: list[float]  # per channel, of pixels in [0, 1]
    std: list[float]
    test_transform: str  # a name that utils/images/transforms.py knows

    def transform(self) -> Transform:
        """The test transform: uint8 images to the network's input (N, channels, image_size, image_size)."""
        return make_transform(self.test_transform, self.image_size, self.mean, self.std)


@dataclass(frozen=True)
class StoredData:
    """What a checkpoint keeps of the data, so that a prediction needs no data set. A learner can be made with it; it has no images."""

    stream: TaskStream
    inputs: InputFormat

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> StoredData:
        return cls(TaskStream(**content["stream"]), InputFormat(**content["inputs"]))
