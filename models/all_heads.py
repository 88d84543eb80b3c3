"""What replay and distillation share: all heads train, over the logits of all classes seen so far.

`AllHeads` is sequential fine-tuning with full logits; `OldNetwork` adds the frozen network of the previous task.
Both are parents, not methods.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from convs.network import IncrementalNet
from models.base import BaseLearner
from utils.config import Strict


class DistillationSettings(Strict):
    """Distillation from the old network."""

    distill_temperature: float = Field(2.0, gt=0.0,
        description="temperature of distillation (2 in each paper or its code)")


class AllHeads(BaseLearner):
    """Cross-entropy over all K classes seen so far; no head is frozen."""

    defaults: ClassVar = {"bcb_lrscale": 1.0}

    def begin_task(self, task: int) -> None:
        super().begin_task(task)
        self.net.heads.requires_grad_(True)

    def training_module(self, task: int) -> nn.Module:
        """Images -> logits of all classes seen so far (N, K)."""
        return self.net

    def parameter_groups(self, task: int) -> list[dict[str, Any]]:
        *backbone, heads = super().parameter_groups(task)
        return [*backbone, {**heads, "params": list(self.net.heads.parameters())}]

    def training_loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = module(images)  # (N, K)
        return F.cross_entropy(logits, labels), logits, labels


class OldNetwork(BaseLearner):
    """Mixin: `old_net` is a frozen copy of the network as the previous task left it, None in the first task."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.old_net: IncrementalNet | None = None  # made anew by every begin_task, so no checkpoint holds it

    def memory_bytes(self) -> dict[str, int]:
        """With the old network's numbers that are not the pre-trained ones."""
        kept = super().memory_bytes()
        if self.old_net is None:
            return kept
        own = self.network_state().keys()
        return {**kept, "parameters": kept["parameters"] + sum(t.nbytes for name, t in self.old_net.state_dict().items() if name in own)}

    def begin_task(self, task: int) -> None:
        self.old_net = copy.deepcopy(self.net).eval().requires_grad_(False) if task > 0 else None
        super().begin_task(task)

    @torch.no_grad()
    def old_logits(self, images: Tensor) -> Tensor:
        """Logits (N, K_old) of the previous task's network, float32."""
        assert self.old_net is not None, "the first task has no old network"
        with self.fabric.autocast():
            return self.old_net(images).float()
