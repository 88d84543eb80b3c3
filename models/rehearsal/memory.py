"""Exemplar memory: which training images a learner keeps between tasks, as PyCIL means the settings.

`memory_size` images shared equally by all classes seen so far (rounded down), or with `fixed_memory` always
`memory_per_class` of every class. The images of a class are chosen by herding (iCaRL, Rebuffi et al., CVPR 2017,
algorithm 4) on normalised features and kept in that order, so a smaller share is a prefix of a larger one.

The memory is a list of positions in the training split, not of pixels; `memory_bytes` counts what copies of the
images would take.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from models.all_heads import AllHeads
from models.by_class import positions_by_class, require_finite
from models.evaluation import plain_batches
from utils.config import MethodSettings
from utils.data.data_manager import Batches
from utils.errors import UserError
from utils.rng import seed_of
from utils.run.monitor import Monitor

# Numbers of features that herding works on at once: what a processor's cache holds, and what keeps a GPU busy.
HERDED_NUMBERS = {"cpu": 2**19, "cuda": 2**26}


class RehearsalSettings(MethodSettings):
    """How many images are kept."""

    memory_size: int = Field(0, ge=0, description="stored images over all classes (rehearsal methods only)")
    memory_per_class: int = Field(0, ge=0, description="stored images per class, with fixed_memory")
    fixed_memory: bool = Field(False, description="memory_per_class for every class instead of sharing memory_size")


class Rehearsal(AllHeads):
    """Each epoch trains on the new task's images and the memory, shuffled together."""

    Settings = RehearsalSettings
    config: RehearsalSettings
    rehearsal_free = False
    least_per_class: ClassVar[int] = 1  # stored images per class without which the method cannot work

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.memory = np.empty(0, dtype=np.int64)  # (M,) positions of images: by class, each class in herding order
        check_budget(self.config, self.stream.num_classes, self.least_per_class)

    def images_per_class(self, task: int) -> int:
        """How many images of each class are kept after `task`."""
        c = self.config
        return c.memory_per_class if c.fixed_memory else c.memory_size // self.stream.classes_upto(task)

    def exemplars_per_class(self, task: int) -> int:
        """How many of them are trained on, and so in `memory`."""
        return self.images_per_class(task)

    def storable(self, task: int) -> np.ndarray:
        """Positions (n,) of the task's images that may come into `memory`."""
        return self.data.task_indices("train", task)

    def epoch_batches(self, task: int, epoch: int) -> Batches:
        return self.data.batches("train", indices=self.training_indices(task), batch_size=self.config.batch_size, augment=True,
                                 shuffle_seed=seed_of(self.config.torch_seed, "train", task, epoch))

    def statistics_batches(self, task: int) -> Batches | None:
        return plain_batches(self, "train", tasks=task)  # of `update_memory`

    def images_per_epoch(self, task: int) -> int:
        return len(self.training_indices(task))

    def training_indices(self, task: int) -> np.ndarray:
        """Positions (n,) of the images of one epoch."""
        return np.concatenate([self.data.task_indices("train", task), self.memory])

    def end_task(self, task: int, monitor: Monitor) -> None:
        with monitor.stage("statistics"):
            self.update_memory(task)

    def update_memory(self, task: int) -> None:
        """Cut each old class to its new share and choose the new classes' images by herding."""
        count = self.exemplars_per_class(task)
        old = self.data.labels_of("train", self.memory)
        kept = [self.memory[old == c][:count] for c in range(self.stream.classes_before(task))]
        features, labels = self.extract("train", task)
        require_finite(features, labels)
        indices = self.data.task_indices("train", task)
        may = np.flatnonzero(np.isin(indices, self.storable(task)))
        rows = torch.from_numpy(may).to(features.device)
        indices, features, labels = indices[may], features[rows], labels[rows]
        new = positions_by_class(labels, self.stream.classes_of(task))
        chosen = [found[order] for found, order in zip(new, herd_classes(features, new, count), strict=True)]
        self.memory = np.concatenate([*kept, indices[torch.cat(chosen).cpu().numpy()]])

    def planned_images(self, task: int, new: float) -> float:
        return new + (self.exemplars_per_class(task - 1) * self.stream.classes_before(task) if task > 0 else 0)

    def forget_statistics(self, labels: Collection[int]) -> None:
        """Take the classes' images out of the memory; a method that keeps more beside it says itself how that forgets."""
        if type(self).extra_state is not Rehearsal.extra_state and type(self).forget_statistics is Rehearsal.forget_statistics:
            super().forget_statistics(labels)
        self.memory, _ = self.without(self.memory, labels)

    def without(self, positions: np.ndarray, labels: Collection[int]) -> tuple[np.ndarray, np.ndarray]:
        """Positions (n,) of the images that are of other classes, among the training images that are left then; and which of
        `positions` these are, (M,) bool.
        """
        gone = np.isin(self.data.labels_of("train", np.arange(positions.max(initial=-1) + 1)), list(labels))
        kept = ~gone[positions]
        return (positions - np.cumsum(gone)[positions])[kept], kept

    def extra_state(self) -> dict[str, Tensor]:
        return {"memory": torch.from_numpy(self.memory)}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        self.memory = state["memory"].cpu().numpy()

    def memory_bytes(self) -> dict[str, int]:
        return {**super().memory_bytes(), "images": self.data.images_bytes(self.memory)}


def herd(features: Tensor, count: int) -> Tensor:
    """Positions (min(n, count),) of images whose running mean stays closest to the class mean, in order of choice.

    p_k = argmin_x || mu - (x + sum_{j<k} p_j) / k ||, without repetition (iCaRL algorithm 4, on features of length 1).

    Args:
        features: (n, D) of one class.
    """
    return herd_classes(features, [torch.arange(len(features), device=features.device)], count)[0]


def herd_classes(features: Tensor, positions: Sequence[Tensor], count: int) -> list[Tensor]:
    """`herd` of several classes, each choice made for as many of them at once as memory allows; no choice waits for the device.

    Args:
        features: (N, D) of all; positions: of each class's images among them.

    Returns:
        For each class the chosen ones' places in its `positions`.
    """
    largest = max((len(found) for found in positions), default=0)
    at_once = max(HERDED_NUMBERS["cuda" if features.is_cuda else "cpu"] // max(largest * features.shape[1], 1), 1)
    chosen: list[Tensor] = []
    for first in range(0, len(positions), at_once):
        part = positions[first:first + at_once]
        chosen += [order[:len(found)] for found, order in zip(part, _herd_batch(features, part, count), strict=True)]
    return chosen


def _herd_batch(features: Tensor, positions: Sequence[Tensor], count: int) -> Tensor:
    """(K, min(n, count)) int64; what comes after a class's last image has no meaning."""
    sizes = torch.tensor([len(found) for found in positions], device=features.device)[:, None]  # (K, 1)
    by_class = [F.normalize(features[found].double(), dim=1) for found in positions]
    means = torch.stack([each.mean(dim=0) for each in by_class])[:, None]  # (K, 1, D)
    unit = pad_sequence(by_class, batch_first=True)  # (K, n, D)
    total, distances = torch.zeros_like(means), torch.empty_like(unit)
    taken = torch.arange(unit.shape[1], device=features.device) >= sizes  # (K, n) chosen already, or padding
    chosen = []
    for k in range(1, min(count, unit.shape[1]) + 1):
        torch.add(unit, total, out=distances).div_(k).sub_(means).square_()
        best = distances.sum(dim=2).masked_fill_(taken, torch.inf).argmin(dim=1, keepdim=True)  # (K, 1)
        taken.scatter_(1, best, True)
        total = total + unit.gather(1, best[..., None].expand(-1, -1, unit.shape[2]))
        chosen.append(best)
    return torch.cat(chosen, dim=1) if chosen else torch.empty(len(positions), 0, dtype=torch.long, device=features.device)


def exemplar_means(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """(K, D): mean of each class's normalised features, normalised again; a class without images gets zeros."""
    sums = features.new_zeros(num_classes, features.shape[1]).index_add_(0, labels, F.normalize(features, dim=1))
    return F.normalize(sums, dim=1)


def check_budget(config: RehearsalSettings, num_classes: int, least: int) -> None:
    """Raise UserError where there is no room for `least` images of every class at the end of the stream."""
    per_class = config.memory_per_class if config.fixed_memory else config.memory_size // num_classes
    if per_class >= least:
        return
    key, allowed = ("memory_per_class", least) if config.fixed_memory else ("memory_size", least * num_classes)
    other = "set fixed_memory to false and share memory_size" if config.fixed_memory else "set fixed_memory and memory_per_class"
    raise UserError(f"{key}: {config.model_name} keeps images of old classes; got {getattr(config, key)}, allowed: {allowed} or more "
                    f"({least} for each of {num_classes} classes). Raise it (2000 in all is usual for 100 classes), or {other}.")
