"""GEM: gradient episodic memory (Lopez-Paz and Ranzato, NIPS 2017, arXiv 1706.08840).

No step may raise the loss on the memory of an old task (to first order): when the batch's gradient g has a negative
product with some old task's gradient g_k, it is replaced by the nearest g' with <g', g_k> >= 0 for all k (its Eq. 8),
found through the dual quadratic program (its Eq. 11).

Differs from the paper: tasks share their classifier (class-incremental: cross-entropy over all classes seen), the memory
of a task is herded instead of its last images, and there are several epochs. Momentum and weight decay act on the
projected gradient; the authors use neither, so set both to 0 for their bound on the step itself. gamma bounds the dual
variables, v >= gamma, as in the authors' code; the text adds gamma to the solution.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import quadprog
import torch
from pydantic import Field
from torch import Tensor, nn

from models import stage1
from models.registry import learner
from models.rehearsal.memory import Rehearsal, RehearsalSettings
from models.stage1 import Batch
from utils.data.data_manager import Batches
from utils.rng import numpy_generator, seed_of

RIDGES = (1e-9, 1e-6, 1e-3, 1.0)  # on the dual's diagonal, relative to its mean: parallel gradients make it singular


class GEMSettings(RehearsalSettings):
    """The bound on a step."""

    gem_margin: float = Field(0.5, ge=0.0,
        description="GEM: gamma, least weight of each old task's gradient (Lopez-Paz and Ranzato 2017)")
    gem_images: int = Field(256, ge=1,
        description="GEM: stored images per old task and step (paper: 256 memories per task, all of them)")


@learner("gem")
class GEM(Rehearsal):
    Settings = GEMSettings
    title = "GEM"

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.coming: Iterator[Batch] = iter(())  # of this step: a batch of each old task's memory

    def training_indices(self, task: int) -> np.ndarray:
        """The new images alone: old ones bound the step, they are not fitted."""
        return self.data.task_indices("train", task)

    def planned_images(self, task: int, new: float) -> float:
        c = self.config
        stored = [self.images_per_class(task - 1) * self.stream.task_sizes[earlier] for earlier in range(task)]
        return new + math.ceil(new / c.batch_size) * sum(min(count, c.gem_images) for count in stored)

    def training_batches(self, task: int, epoch: int) -> Iterable[Batch]:
        """New images and labels; the stored ones that bound the step come behind them, for `after_backward`."""
        batches = super().training_batches(task, epoch)
        number = math.ceil(self.images_per_epoch(task) / self.config.batch_size)
        return stage1.Steps(self.steps(iter(batches), number, len(batches)), number)

    def steps(self, batches: Iterator[Batch], number: int, count: int) -> Iterator[Batch]:
        """The first of each step's batches; the others wait in `coming` until the next step."""
        for _ in range(number):
            self.coming = islice(batches, count // number)
            yield next(self.coming)
            for _ in self.coming:  # the next step begins behind those that nobody asked for
                pass
        self.coming = iter(())

    def epoch_batches(self, task: int, epoch: int) -> Batches:
        """The batches of every step in turn: new images, then those of the memory of each old task that has some."""
        new = super().epoch_batches(task, epoch)
        stored = [Batches.joined(self.memory_batch(task, epoch, step, earlier) for step in range(len(new)))
                  for earlier in range(task) if len(new) and len(self.stored(earlier))]
        return Batches.in_turn(new, *stored)

    def stored(self, earlier: int) -> np.ndarray:
        """Positions (m,) of the memory of task `earlier`."""
        return self.memory[self.stream.task_of_class[self.data.labels_of("train", self.memory)] == earlier]

    def memory_batch(self, task: int, epoch: int, step: int, earlier: int) -> Batches:
        """One batch of the memory of task `earlier`; shuffling it costs nothing and gives every process a slice of it."""
        stream = (self.config.torch_seed, "gem", task, epoch, step, earlier)
        drawn = numpy_generator(*stream).permutation(self.stored(earlier))[: self.config.gem_images]
        return self.data.batches("train", indices=drawn, batch_size=len(drawn), augment=False, shuffle_seed=seed_of(*stream))

    def after_backward(self, module: nn.Module) -> None:
        parameters = [p for p in self.net.parameters() if p.requires_grad]
        if self.task > 0:
            gradient = read_gradients(parameters)
            old = gradient.new_zeros(self.task, len(gradient))  # (t, P), up to gigabytes: filled in place
            for earlier in range(self.task):
                count = min(len(self.stored(earlier)), self.config.gem_images)
                if count:  # a task whose classes have no images asks for nothing
                    old[earlier] = self.memory_gradient(module, parameters, next(self.coming), count)
            write_gradients(parameters, project(gradient, old, self.config.gem_margin))

    def memory_gradient(self, module: nn.Module, parameters: list[nn.Parameter], batch: Batch, count: int) -> Tensor:
        """Gradient (P,) of the loss on a batch of an old task's memory, of `count` images over all processes."""
        stage1.backward_batch(self, module, self.fabric.to_device(batch), count)
        return read_gradients(parameters)


def project(gradient: Tensor, memories: Tensor, margin: float) -> Tensor:
    """The gradient itself if it has no negative product with a row of `memories`, else its projection.

    g' = G^T v + g, v = argmin_v 1/2 v^T G G^T v + (G g)^T v subject to v >= margin; with margin 0 that is the
    g' nearest to g with G g' >= 0 (GEM Eq. 8-11).

    Args:
        gradient: (P,) g; memories: (t, P) G, one old task a row; margin: gamma.
    """
    found = torch.cat([memories @ memories.T, (memories @ gradient)[:, None]], dim=1)  # (t, t + 1)
    found = found.cpu().double().numpy()  # the only wait for the device: the program is solved on the CPU
    gram, products = found[:, :-1], found[:, -1]
    if not np.isfinite(products).all() or (products >= 0).all():  # an overflow under 16-mixed is the scaler's to skip
        return gradient
    scale = max(np.trace(gram) / len(gram), np.finfo(np.float64).tiny)
    v = solve_dual(gram / scale, products / scale, margin)
    return gradient + torch.from_numpy(v).to(memories, non_blocking=True) @ memories


def solve_dual(gram: np.ndarray, products: np.ndarray, margin: float) -> np.ndarray:
    """argmin_v 1/2 v' G v + p' v subject to v >= margin, (t,) (GEM Eq. 11). Args: gram (t, t) with a mean diagonal of 1; products (t,).

    Gradients that are nearly parallel leave G, summed in float32, with an eigenvalue of about 0 or below; the ridge is raised until
    quadprog takes it.
    """
    tasks = len(gram)
    for ridge in RIDGES:
        try:
            return quadprog.solve_qp(gram + ridge * np.eye(tasks), -products, np.eye(tasks), np.full(tasks, margin))[0]
        except ValueError as error:
            if "positive definite" not in str(error):
                raise
    raise AssertionError(f"a matrix of products whose mean diagonal is 1 cannot need a ridge of {RIDGES[-1]}")


def read_gradients(parameters: Iterable[nn.Parameter]) -> Tensor:
    """All gradients as one vector (P,); a parameter without one counts as 0."""
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])


def write_gradients(parameters: list[nn.Parameter], values: Tensor) -> None:
    """Set all gradients from one vector (P,)."""
    for parameter, part in zip(parameters, values.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter).clone()
