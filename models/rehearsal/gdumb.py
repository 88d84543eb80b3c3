"""GDumb: greedy sampler and dumb learner (Prabhu, Torr and Dokania, ECCV 2020).

Nothing is learned from the stream but a memory balanced over classes; after each task a network is trained from its
starting weights on the memory alone.

Differs from the paper: it starts from the pre-trained ViT instead of random weights, the cosine schedule has no
restarts, and there is no CutMix. The memory counts images as the other rehearsal methods do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from models.registry import learner
from models.rehearsal.memory import Rehearsal
from utils.formulas.schedules import cosine
from utils.rng import numpy_generator
from utils.run.monitor import Monitor


@learner("gdumb")
class GDumb(Rehearsal):
    title = "GDumb"

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.start = {name: t.detach().clone() for name, t in self.net.backbone.state_dict().items()}  # never changes

    def begin_task(self, task: int) -> None:
        """Fill the memory from the task's stream, then start all over: backbone and the heads of tasks 0..task."""
        self.sample(task)
        self.net.backbone.load_state_dict(self.start)
        self.net.heads, self.net.head_scales = nn.ModuleList(), []
        for each in range(task + 1):
            super().begin_task(each)

    def sample(self, task: int) -> None:
        generator = numpy_generator(self.config.torch_seed, "gdumb", task)
        stream = generator.permutation(self.data.task_indices("train", task))
        capacity = self.images_per_class(task) * self.stream.classes_upto(task) if self.config.fixed_memory else self.config.memory_size
        stored = [(int(i), int(c)) for i, c in zip(self.memory, self.data.labels_of("train", self.memory), strict=True)]
        arriving = [(int(i), int(c)) for i, c in zip(stream, self.data.labels_of("train", stream), strict=True)]
        self.memory = np.array([i for i, _ in greedy_sampler(stored, arriving, capacity, generator)], dtype=np.int64)

    def training_indices(self, task: int) -> np.ndarray:
        return self.memory

    def learning_rate(self, base_lr: float, epoch: int) -> float:
        return cosine(base_lr, epoch, self.config.epochs)

    def planned_images(self, task: int, new: float) -> float:
        return self.images_per_class(task) * self.stream.classes_upto(task)

    def end_task(self, task: int, monitor: Monitor) -> None:
        """The memory is filled before training; nothing follows."""


def greedy_sampler(stored: Sequence[tuple[int, int]], arriving: Sequence[tuple[int, int]], capacity: int,
                   generator: np.random.Generator) -> list[tuple[int, int]]:
    """The memory after a stream of (image, class) has passed, by class (GDumb algorithm 1).

    An image is stored while its class has less than capacity / classes seen; when the memory is full, a random
    image of the largest class makes room for it.
    """
    classes: dict[int, list[tuple[int, int]]] = {}
    for item in stored:
        classes.setdefault(item[1], []).append(item)
    total = len(stored)
    for item in arriving:
        own = classes.setdefault(item[1], [])
        if len(own) >= capacity / len(classes):
            continue
        if total >= capacity:
            largest = max(classes.values(), key=len)
            largest.pop(int(generator.integers(len(largest))))
            total -= 1
        own.append(item)
        total += 1
    return [item for label in sorted(classes) for item in classes[label]]
