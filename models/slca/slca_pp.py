"""SLCA++ (Zhang et al., arXiv 2408.08295): SLCA with a Hybrid Slow Learner, symmetric cross-entropy and feature scaling.

- Hybrid SL: of the backbone only LoRA's factors and what is called norm, bias or cls_token train.
- Cosine schedule, symmetric cross-entropy on the own task's logits.
- Alignment draws around the means as they are and divides each feature by 1 + u (T - t); afterwards head t
  multiplies its input by 1 + mu (T - t).

Differs from the authors' release: the heads' scales are in the checkpoint; T - t uses the class's real task.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from convs.backbones import Backbone
from convs.lora import add_lora
from models.registry import learner
from models.slca.slca import SLCA, SLCASettings
from utils.formulas.losses import symmetric_cross_entropy
from utils.formulas.schedules import cosine
from utils.run.monitor import Monitor

TRAINED_WORDS = ("lora_", "norm", "bias", "cls_token")
SCALE_NOISE = 0.02  # width of u's uniform noise; fixed, it does not follow fc_scale_mu


class SLCAPlusPlusSettings(SLCASettings):
    """What SLCA++ adds."""

    lora_rank: int = Field(4, ge=1, le=100_000, description="rank of the LoRA factors")
    lora_scale: float = Field(0.8, gt=0.0, description="W + lora_scale B A")
    lora_targets: list[Literal["qkv", "fc1", "fc2"]] = Field(default_factory=lambda: ["qkv"], min_length=1,
        description="layers with LoRA: ['qkv'] is what the release trains; the paper describes qkv, fc1, fc2")
    lora_lrscale_first: float = Field(0.5, ge=0.0,
        description="LoRA's learning rate in the first task as a multiple of lr; later bcb_lrscale")
    sce_a: float = Field(1.0, ge=0.0, description="weight of the cross-entropy")
    sce_b: float = Field(0.1, ge=0.0, description="weight of the reverse cross-entropy")
    fc_scale_mu: float = Field(0.02, ge=0.0, description="feature scaling per task of age")


@learner("slca_pp")
class SLCAPlusPlus(SLCA):
    Settings = SLCAPlusPlusSettings
    title = "SLCA++"
    defaults: ClassVar = {"bcb_lrscale": 0.1}

    def prepare_backbone(self, backbone: Backbone) -> Backbone:
        add_lora(backbone.model, self.config.lora_rank, self.config.lora_scale, self.config.lora_targets)
        return super().prepare_backbone(backbone)

    # Stage 1: Hybrid Slow Learner ----------------------------------------------------------------------------

    def trains(self, name: str) -> bool:
        return super().trains(name) and any(word in name for word in TRAINED_WORDS)

    def parameter_groups(self, task: int) -> list[dict[str, Any]]:
        c = self.config
        lora_scale = c.lora_lrscale_first if task == 0 else c.bcb_lrscale
        return [*self.backbone_groups(c.lr * lora_scale, lambda name: "lora_" in name, "lora"),
                *self.backbone_groups(c.lr * c.bcb_lrscale, lambda name: "lora_" not in name),
                {"params": list(self.net.heads[task].parameters()), "lr": c.lr, "name": "head"}]

    def learning_rate(self, base_lr: float, epoch: int) -> float:
        """Cosine to one floor for all groups; the milestones' number alone plays a part, as in the release."""
        c = self.config
        return cosine(base_lr, epoch, c.epochs, floor=c.lr * c.bcb_lrscale * c.lrate_decay ** len(c.milestones))

    def classification_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return symmetric_cross_entropy(logits, targets, self.config.sce_a, self.config.sce_b)

    # Stage 2: Classifier Alignment with feature scaling ------------------------------------------------------

    def draw_features(self, task: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        features, labels = self.gaussians.sample(self.gaussians.means(), count, generator)
        uniform = torch.rand(len(labels), generator=generator, device=labels.device)
        age = task - self.tasks_of_classes(task)[labels]  # (N,) tasks since the class came in
        return scale_features(features, age, uniform, self.config.fc_scale_mu), labels

    def align(self, task: int, monitor: Monitor) -> None:
        super().align(task, monitor)
        self.net.head_scales = [1 + self.config.fc_scale_mu * (task - t) for t in range(task + 1)]

    def recall_heads(self) -> None:
        super().recall_heads()
        self.net.head_scales = [1.0] * len(self.net.heads)


def scale_features(features: Tensor, age: Tensor, uniform: Tensor, mu: float) -> Tensor:
    """x / (1 + u (T - t)), u = mu + 0.02 (r - 1/2) (SLCA++ section 3.3).

    Args:
        features: (N, D); age: (N,) T - t; uniform: (N,) r, drawn from U(0, 1); mu: `fc_scale_mu`.
    """
    u = mu + SCALE_NOISE * (uniform - 0.5)
    return features / (1 + u * age)[:, None]
