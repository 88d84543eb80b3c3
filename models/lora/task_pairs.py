"""What methods with a LoRA pair per task share (InfLoRA, SD-LoRA, E2-LoRA): pairs by the task's number, and what enters their layers.

A parent, not a method.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from convs.backbones import Backbone
from convs.lora_pairs import Pairs, put_pairs
from convs.moments import InputMoments, input_moments
from models.base import BaseLearner


class TaskPairs(BaseLearner, ABC):
    """Mixin: every task adds a pair at each of `targets`; all pairs count, whatever the image."""

    targets: ClassVar[tuple[str, ...]] = ()

    def prepare_backbone(self, backbone: Backbone) -> Backbone:
        self.add_pair(put_pairs(backbone.model, self.targets), 0)  # here already, so that a dry run counts it
        return super().prepare_backbone(backbone)

    @abstractmethod
    def add_pair(self, pairs: Pairs, task: int) -> None:
        """Add the pair of `task`, B A = 0; deterministic."""

    @property
    def pairs(self) -> Pairs:
        return Pairs(self.net.backbone.model)

    def begin_task(self, task: int) -> None:
        super().begin_task(task)
        if task > 0:
            self.add_pair(self.pairs, task)
        self.choose_trained()

    def trains(self, name: str) -> bool:
        """The newest pair's factors."""
        return super().trains(name) and self.is_factor(name, "lora_A", "lora_B")

    def is_factor(self, name: str, *factors: str) -> bool:
        """Whether the parameter `name` is one of these factors of the newest pair."""
        return any(name.endswith(f".{max(self.task, 0)}.{factor}") for factor in factors)

    def load_network_state(self, state: Mapping[str, Tensor], task: int) -> None:
        super().load_network_state(state, task)
        self.choose_trained()  # pairs that the state made are frozen but the newest

    @torch.no_grad()
    def task_moments(self, task: int) -> dict[str, InputMoments]:
        """What enters each of the pairs' layers, by path, over all tokens of the task's training images (test transform)."""
        c, fabric, layers = self.config, self.fabric, self.pairs.layers
        self.net.eval()
        with input_moments(layers) as moments:
            for images, _ in self.data.batches("train", task, batch_size=c.test_batch_size or c.batch_size, augment=False):
                with fabric.autocast():
                    self.features(fabric.to_device(images))
        for path, seen in moments.items():
            width = layers[path].in_features
            zeros = torch.zeros(width + 1, width, dtype=torch.float64, device=fabric.device)
            sums = zeros if seen.outer is None else torch.cat([seen.total[None], seen.outer])
            sums = fabric.all_reduce(sums, reduce_op="sum")
            seen.total, seen.outer = sums[0], sums[1:]
            seen.count = int(fabric.all_reduce(torch.tensor(float(seen.count), device=fabric.device), reduce_op="sum").item())
        return moments
