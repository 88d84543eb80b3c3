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
from collections.abc import Iterable

import numpy as np
import quadprog
import torch
from pydantic import Field
from torch import Tensor, nn

from models import stage1
from models.registry import learner
from models.rehearsal.memory import Rehearsal, RehearsalSettings
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

    def training_indices(self, task: int) -> np.ndarray:
        """The new images alone: old ones bound the step, they are not fitted."""
        return self.data.task_indices("train", task)

    def planned_images(self, task: int, new: float) -> float:
        c = self.config
        stored = [self.images_per_class(task - 1) * self.stream.task_sizes[earlier] for earlier in range(task)]
        return new + math.ceil(new / c.batch_size) * sum(min(count, c.gem_images) for count in stored)

    def after_backward(self, module: nn.Module) -> None:
        parameters = [p for p in self.net.parameters() if p.requires_grad]
        if self.task > 0:
            gradient = read_gradients(parameters)
            old = gradient.new_empty(self.task, len(gradient))  # (t, P), up to gigabytes: filled in place
            for earlier in range(self.task):
                old[earlier] = self.memory_gradient(module, parameters, earlier)
            write_gradients(parameters, project(gradient, old, self.config.gem_margin))

    def memory_gradient(self, module: nn.Module, parameters: list[nn.Parameter], earlier: int) -> Tensor:
        """Gradient (P,) of the loss on the memory of task `earlier`."""
        stored = self.memory[self.stream.task_of_class[self.data.labels_of("train", self.memory)] == earlier]
        stream = (self.config.torch_seed, "gem", self.task, self.epoch, self.step, earlier)
        drawn = numpy_generator(*stream).permutation(stored)[: self.config.gem_images]
        if not len(drawn):  # a task whose classes have no images asks for nothing
            return torch.zeros_like(read_gradients(parameters))
        # One batch; shuffling it costs nothing and gives every process a slice of it.
        whole = {"indices": drawn, "batch_size": len(drawn), "augment": False, "shuffle_seed": seed_of(*stream)}
        for images, labels in self.data.batches("train", **whole):
            stage1.backward_batch(self, module, self.fabric.to_device((images, labels)), len(drawn))
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
