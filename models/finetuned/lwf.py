"""LwF: learning without forgetting (Li and Hoiem, ECCV 2016, arXiv 1606.09282).

Cross-entropy over the new task's own logits, and on the same images distillation of every old task's logits from the
network as the previous task left it. No old image is kept.

Differs from the paper: a pre-trained ViT, no warm-up of the new head alone, and the task is unknown at test time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from models.all_heads import AllHeads, DistillationSettings, OldNetwork
from models.registry import learner
from utils.config import MethodSettings
from utils.formulas.losses import distillation


class LwFSettings(DistillationSettings, MethodSettings):
    """The weight of what is distilled."""

    lwf_lambda: float = Field(1.0, ge=0.0, description="LwF: weight of distillation (Li and Hoiem 2016; PyCIL: 3)")


@learner("lwf")
class LwF(OldNetwork, AllHeads):
    Settings = LwFSettings
    title = "LwF"

    def training_loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = self.stream.classes_before(self.task)
        logits, targets = module(images), labels - first  # (N, K)
        loss = self.classification_loss(logits[:, first:], targets)
        if self.old_net is not None:
            kept = old_tasks_loss(logits[:, :first], self.old_logits(images), self.old_net.head_sizes, self.config.distill_temperature)
            loss = loss + self.config.lwf_lambda * kept
        return loss, logits[:, first:], targets


def old_tasks_loss(logits: Tensor, old_logits: Tensor, head_sizes: Sequence[int], temperature: float) -> Tensor:
    """Sum over old tasks of the distillation of that task's logits (LwF Eq. 2-3); both logits (N, K_old)."""
    sizes = list(head_sizes)
    parts = zip(logits.split(sizes, dim=1), old_logits.split(sizes, dim=1), strict=True)
    return torch.stack([distillation(new, old, temperature) for new, old in parts]).sum()
