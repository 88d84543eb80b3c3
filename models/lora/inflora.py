"""InfLoRA: LoRA in a subspace that no old task uses (Liang and Li, CVPR 2024, arXiv 2404.00228).

A pair per task on the rows of k and v in every block's qkv; the products of all pairs are summed. Of the new pair A (r, D) is
fixed and B, from 0, trains, with the new head on its own logits. All heads predict.

    before a task   C = mean of x x' over the task's tokens, x what enters qkv; A = the top r left singular vectors of the part of C
                    that no old task uses, over sqrt 3 (`new_directions`)
    after a task    a new C; DualGPM lets M take in the task's directions until they hold e_t = e_0 + (1 - e_0) t / T of the energy
                    (`dual_gpm`); with more than D/2 columns the free directions are kept instead

Differs from the authors' code: energy is that of the tokens themselves, |M'x|^2. There C takes the tokens' place, whose energy
counts them to the fourth power, so that fewer directions are kept: `inflora_squared` brings that back, and their figures need it.
C is over images under the test transform; they train in evaluation mode, which for a ViT without dropout is the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from convs.lora_pairs import Pairs
from models.base import FLOAT_BYTES
from models.lora.task_pairs import TaskPairs
from models.registry import learner
from models.slca.gaussian_learner import part_of_state
from utils.config import MethodSettings
from utils.formulas.subspaces import GradientSpace, dual_gpm, energy_threshold, new_directions, root_of
from utils.machine.distributed import copy_from_first
from utils.run.monitor import Monitor


class InfLoRASettings(MethodSettings):
    """The pairs and the energy that is kept."""

    lora_rank: int = Field(10, ge=1, le=100_000, description="rank of each task's pair")
    inflora_energy: float = Field(0.95, ge=0.0, le=1.0,
        description="e_0, share of a task's energy that counts as used after the first task; rises to 1 (CIFAR-100 0.95, ImageNet-R 0.98)")
    inflora_squared: bool = Field(False, description="measure energy on C itself, tokens to the fourth power, as the authors' code does")


@learner("inflora")
class InfLoRA(TaskPairs):
    Settings = InfLoRASettings
    title = "InfLoRA"
    targets = ("k", "v")
    defaults: ClassVar = {"bcb_lrscale": 1.0, "lr": 5e-4, "weight_decay": 0.0}

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.spaces: dict[str, GradientSpace] = {}  # layer's path -> M of the tasks learned, or what is free; float32

    def add_pair(self, pairs: Pairs, task: int) -> None:
        pairs.add(task, self.config.lora_rank, start="zero")

    def trains(self, name: str) -> bool:
        return super().trains(name) and self.is_factor(name, "lora_B")

    # The subspace --------------------------------------------------------------------------------------------

    def begin_task(self, task: int) -> None:
        super().begin_task(task)
        moments = self.task_moments(task)
        for path, layer in self.pairs.layers.items():
            moment = moments[path].second_moment()
            A = new_directions(self.space(path, moment), moment, self.config.lora_rank)
            for target in self.targets:
                layer.pairs[target][str(task)].lora_A.data.copy_(A)
                copy_from_first(self.fabric, [layer.pairs[target][str(task)].lora_A])

    def end_task(self, task: int, monitor: Monitor) -> None:
        with monitor.stage("statistics"):
            c, moments = self.config, self.task_moments(task)
            threshold = energy_threshold(c.inflora_energy, task, self.stream.num_tasks)
            for path in self.pairs.layers:
                moment = moments[path].second_moment()
                grown = dual_gpm(self.space(path, moment), moment if c.inflora_squared else root_of(moment), threshold)
                self.spaces[path] = GradientSpace(grown.basis.float().contiguous(), grown.free)
                copy_from_first(self.fabric, [self.spaces[path].basis])
        used = [len(s.basis) - s.basis.shape[1] if s.free else s.basis.shape[1] for s in self.spaces.values()]
        monitor.log(f"subspaces: {sum(used) / len(used):.0f} of {self.net.backbone.dim} directions are used, mean over {len(used)} layers")

    def space(self, path: str, like: Tensor) -> GradientSpace:
        """The layer's space in the dtype of `like`; empty before the first task ends."""
        if path not in self.spaces:
            return GradientSpace.empty(like)
        return GradientSpace(self.spaces[path].basis.to(like), self.spaces[path].free)

    # Training ------------------------------------------------------------------------------------------------

    def make_optimizer(self, task: int) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameter_groups(task), weight_decay=self.config.weight_decay)

    def learning_rate(self, base_lr: float, epoch: int) -> float:
        """lr cos(99 pi e / (200 (K - 1))), K the epochs: falls to 1.6% of lr in the last one."""
        return base_lr * math.cos(99 * math.pi * epoch / (200 * max(self.config.epochs - 1, 1)))

    # State ---------------------------------------------------------------------------------------------------

    def extra_state(self) -> dict[str, Tensor]:
        return {**{f"basis.{path}": space.basis for path, space in self.spaces.items()},
                **{f"free.{path}": torch.tensor(space.free) for path, space in self.spaces.items()}}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        free = part_of_state(state, "free.")
        self.spaces = {path: GradientSpace(basis, bool(free[path])) for path, basis in part_of_state(state, "basis.").items()}

    def planned_statistics(self, classes: int, images_per_class: int | None) -> int:
        """At most half the directions of every layer."""
        return sum(FLOAT_BYTES * layer.in_features * (layer.in_features // 2) for layer in self.pairs.layers.values())

    def memory_bytes(self) -> dict[str, int]:
        return {**super().memory_bytes(), "statistics": sum(space.basis.nbytes for space in self.spaces.values())}
