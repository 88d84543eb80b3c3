"""EWC: elastic weight consolidation (Kirkpatrick et al., PNAS 2017, arXiv 1612.00796).

After each task t the Fisher information's diagonal F_t at the weights theta_t; afterwards every task pays
lambda / 2 sum_t sum_i F_ti (theta_i - theta_ti)^2 (its Eq. 3, one penalty per old task).

A sum of parabolas is a parabola, so two tensors hold all tasks: F = sum_t F_t and the minimum
theta* = sum_t F_t theta_t / F; the rest of the sum is a constant without gradient.

Differs from the paper: only the backbone is held (old heads are frozen), and Fisher values are cut at
`ewc_fisher_max`, as PyCIL does: a step diverges where lambda F lr exceeds 2.

`"ewc_fisher": "batch"` is PyCIL's variant (G-U-N/PyCIL at 27a5ed8, models/ewc.py): the squared gradient of a whole batch's mean
loss on true labels over all classes seen, F a mean over tasks weighted with their classes, theta* the newest weights. Gradients
of different images cancel in a batch's mean, so its values are far smaller: the paper's Fisher with the same lambda was measured
to act 296 to 683 times as strongly at batch 128. So PyCIL's lambda 1000 belongs to "batch"; with "paper" 1000 is our choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from convs.network import OwnTask
from models.base import BaseLearner
from models.registry import learner
from utils.config import MethodSettings
from utils.rng import numpy_generator, seed_of, torch_generator
from utils.run.monitor import Monitor


class EWCSettings(MethodSettings):
    """The penalty."""

    ewc_fisher: Literal["paper", "batch"] = Field("paper", description="EWC: paper: squared gradients of single images, labels drawn "
        "from the model; batch: squared gradients of a batch's mean loss on true labels, as PyCIL")
    ewc_lambda: float = Field(1000.0, ge=0.0, description="EWC: weight of the penalty (paper tunes it per problem). 1000 is ours with "
        "ewc_fisher paper and PyCIL's with batch, where the same number acts some hundred times more weakly")
    ewc_images: int = Field(200, ge=1,
        description="EWC: images per task that the paper's Fisher information is estimated on; batch takes all")
    ewc_fisher_max: float = Field(1e-4, gt=0.0, description="EWC: Fisher values are cut here, which keeps SGD stable (PyCIL)")


@learner("ewc")
class EWC(BaseLearner):
    Settings = EWCSettings
    title = "EWC"
    defaults: ClassVar = {"bcb_lrscale": 1.0}

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.fisher: dict[str, Tensor] = {}  # parameter -> sum over tasks of F_t, as the parameter's shape
        self.anchor: dict[str, Tensor] = {}  # parameter -> theta*, as the parameter's shape

    def held_parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.net.backbone.named_parameters() if p.requires_grad}

    def training_loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        loss, logits, targets = super().training_loss(module, images, labels)
        if self.fisher:
            loss = loss + self.config.ewc_lambda / 2 * quadratic_penalty(self.held_parameters(), self.fisher, self.anchor)
        return loss, logits, targets

    def end_task(self, task: int, monitor: Monitor) -> None:
        with monitor.stage("statistics"):
            c, held = self.config, self.held_parameters()
            batchwise = c.ewc_fisher == "batch"
            found = self.batch_fisher(task) if batchwise and held else estimate_fisher(self, task, held, c.ewc_images)
            fisher = {name: f.clamp(max=c.ewc_fisher_max) for name, f in found.items()}
            if batchwise:
                old = self.stream.classes_before(task) / self.stream.classes_upto(task)
                self.fisher = {name: old * self.fisher.get(name, 0.0) + (1 - old) * f for name, f in fisher.items()}
                self.anchor = {name: p.detach().clone() for name, p in held.items()}
            else:
                self.fisher, self.anchor = add_parabola(self.fisher, self.anchor, fisher, held)

    def batch_fisher(self, task: int) -> dict[str, Tensor]:
        """Mean over the task's batches of the squared gradient of the batch's mean loss on true labels, over all classes seen."""
        c, parameters = self.config, self.held_parameters()
        batches = self.data.batches("train", task, batch_size=c.batch_size, augment=True,
                                    shuffle_seed=seed_of(c.torch_seed, "fisher batches", task))
        total = {name: torch.zeros_like(p) for name, p in parameters.items()}
        for images, labels in batches:
            images, labels = self.fabric.to_device((images, labels))
            count = self.fabric.all_reduce(torch.tensor(float(len(labels)), device=self.fabric.device), reduce_op="sum")
            gradients = [torch.zeros_like(p) for p in parameters.values()]
            if len(labels):  # a small last batch may leave a process nothing
                with self.fabric.autocast():
                    logits = self.net(images).float()
                loss = F.cross_entropy(logits, labels, reduction="sum") / count
                gradients = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
            for summed, gradient in zip(total.values(), gradients, strict=True):
                summed += self.fabric.all_reduce(gradient, reduce_op="sum").square()
        return {name: t / max(len(batches), 1) for name, t in total.items()}

    def extra_state(self) -> dict[str, Tensor]:
        return {**{f"fisher.{k}": v for k, v in self.fisher.items()}, **{f"anchor.{k}": v for k, v in self.anchor.items()}}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        self.fisher, self.anchor = ({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
                                    for prefix in ("fisher.", "anchor."))

    def memory_bytes(self) -> dict[str, int]:
        kept = [*self.fisher.values(), *self.anchor.values()]
        return {**super().memory_bytes(), "statistics": sum(t.nbytes for t in kept)}


@torch.enable_grad()
def estimate_fisher(learner: BaseLearner, task: int, parameters: Mapping[str, nn.Parameter], images: int) -> dict[str, Tensor]:
    """Mean over up to `images` images of `task` of the squared gradient of log p(y | x), y drawn from the model (its own classes)."""
    fabric, data, seed = learner.fabric, learner.data, learner.config.torch_seed
    chosen = data.task_indices("train", task)
    chosen = np.sort(numpy_generator(seed, "fisher", task).permutation(chosen)[:images])
    levels = torch.rand(len(chosen), generator=torch_generator(seed, "fisher labels", task), dtype=torch.float64)
    own = np.array_split(levels.numpy(), fabric.world_size)[fabric.global_rank]  # as `batches` splits the images
    if not parameters:  # bcb_lrscale 0: nothing moves, nothing is held
        return {}
    module = OwnTask(learner.net, task)
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for (pixels, _), level in zip(data.batches("train", indices=chosen, batch_size=1, augment=False), own, strict=True):
        with fabric.autocast():
            logits = module(fabric.to_device(pixels)).float()
        drawn = label_at(logits.detach().softmax(dim=1), level)
        add_squared_gradient(total, F.cross_entropy(logits, drawn), parameters)
    return {name: fabric.all_reduce(t, reduce_op="sum") / max(len(chosen), 1) for name, t in total.items()}


def label_at(probabilities: Tensor, level: float) -> Tensor:
    """The label (1,) that a number `level`, uniform in [0, 1), draws from `probabilities` (1, C)."""
    below = probabilities.double().cumsum(dim=1) <= level
    return below.sum(dim=1).clamp_max(probabilities.shape[1] - 1)


def quadratic_penalty(parameters: Mapping[str, Tensor], fisher: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> Tensor:
    """sum_i F_i (theta_i - theta*_i)^2."""
    return torch.stack([(fisher[name] * (p - anchor[name]).square()).sum() for name, p in parameters.items()]).sum()


@torch.no_grad()
def add_parabola(fisher: Mapping[str, Tensor], anchor: Mapping[str, Tensor], new_fisher: Mapping[str, Tensor],
                 new_anchor: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """F and theta* of the sum of two penalties; where both have F = 0 theta* plays no part and is the new one."""
    total, minimum = {}, {}
    for name, f in new_fisher.items():
        old_f, old = fisher.get(name, torch.zeros_like(f)), anchor.get(name, torch.zeros_like(f))
        total[name] = old_f + f
        share = torch.where(total[name] > 0, f / total[name], torch.ones_like(f))
        minimum[name] = torch.lerp(old, new_anchor[name].detach(), share)
    return total, minimum


def add_squared_gradient(total: Mapping[str, Tensor], loss: Tensor, parameters: Mapping[str, nn.Parameter]) -> None:
    """Add the squared gradient of one image's loss to `total`; a parameter without gradient adds nothing."""
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    for name, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            total[name] += gradient.square()
