"""SD-LoRA: directions of old tasks frozen, their magnitudes trained on (Wu et al., ICLR 2025, arXiv 2501.13198).

    W + sum_i m_i B_i A_i / |B_i A_i|,    i over the tasks learned, on the rows of q and v in every block's qkv

The new task trains its own pair and all magnitudes, by SGD, with the new head on its own logits. All heads predict; nothing else is kept.

Differs from the authors' code: a magnitude of each task, layer and target goes on from where it was, so that a new task begins
with the network as the last one left it. There one magnitude per task, shared by all layers, begins every task at 0.8 anew,
and a direction is divided by |A| |B|, which is not its length.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from convs.lora_pairs import Pairs
from models.lora.task_pairs import TaskPairs
from models.registry import learner
from utils.config import MethodSettings
from utils.rng import torch_generator


class SDLoRASettings(MethodSettings):
    """The pairs."""

    lora_rank: int = Field(10, ge=1, le=100_000, description="rank of each task's pair")
    sd_lora_magnitude: float = Field(0.8, gt=0.0, le=1e6, description="what a new pair's magnitude begins as (the authors' code: 0.8)")
    sd_lora_train_old: bool = Field(True, description="train the magnitudes of old tasks too; false: they stay (ablation)")


@learner("sd_lora")
class SDLoRA(TaskPairs):
    Settings = SDLoRASettings
    title = "SD-LoRA"
    targets = ("q", "v")
    defaults: ClassVar = {"bcb_lrscale": 1.0, "lr": 8e-3, "weight_decay": 0.0}

    def add_pair(self, pairs: Pairs, task: int) -> None:
        c = self.config
        pairs.add(task, c.lora_rank, magnitude=c.sd_lora_magnitude, generator=torch_generator(c.torch_seed, "lora", task))

    def begin_task(self, task: int) -> None:
        if task > 0:
            self.pairs.freeze(task - 1)  # its length moves into its magnitude
        super().begin_task(task)

    def trains(self, name: str) -> bool:
        old = self.config.sd_lora_train_old and name.endswith(".magnitude")
        return (super().trains(name) or old or self.is_factor(name, "magnitude")) and self.config.bcb_lrscale > 0
