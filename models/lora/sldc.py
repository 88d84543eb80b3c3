"""SLDC: sequential LoRA whose drift old Gaussians follow (Rao et al., arXiv 2511.09926), without images of other data.

    training      one LoRA for all tasks on qkv, fc1, fc2; symmetric cross-entropy of the new task's logits; features are held near those of
                  the network before the task: mean squared distance, and that of their lengths (`hold_features`)
    statistics    a map T of unit features, fitted on the new images before and after the task, moves the old Gaussians:
                  alpha_1    linear: mu W, W' S W
                  alpha_2    weakly nonlinear (`MixtureMap`): mean and covariance of drawn features that T has moved, their lengths restored
    classifier    all heads are trained on drawn features by the same loss, always from where training left them

Differs from the authors' code: that draws on 1,024 ImageNet-1k images to fit the maps by default, which is not exemplar-free.
Old heads are frozen in training (there only weight decay moves them); the classifier is refined from the second task on; what differs in
the maps themselves is told in utils/formulas/drift_maps.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from convs.backbones import Backbone
from convs.lora import add_lora
from models.registry import learner
from models.slca.alignment import Alignment
from models.slca.gaussians import ClassGaussians
from models.slca.paired_features import paired_features
from models.slca.slca import SLCA, SLCASettings
from utils.errors import UserError
from utils.formulas.drift_maps import MixtureMap, fit_mixture, hold_features, linear_map
from utils.formulas.losses import symmetric_cross_entropy
from utils.formulas.schedules import cosine
from utils.machine.distributed import copy_from_first
from utils.rng import torch_generator
from utils.run.monitor import Monitor

BATCH_PER_CLASS = 3.2  # features per step of the classifier and class, authors' code
LAST_SHARE, LAST_CA_SHARE = 1 / 3, 0.1  # what the rates of training and of the classifier fall to


class SLDCSettings(SLCASettings):
    """LoRA, the losses and the drift's map."""

    lora_rank: int = Field(4, ge=1, le=100_000, description="rank of the LoRA factors")
    lora_scale: float = Field(0.8, gt=0.0, le=1e6, description="W + lora_scale B A")
    sce_a: float = Field(0.5, ge=0.0, description="weight of the cross-entropy")
    sce_b: float = Field(0.5, ge=0.0, description="weight of the reverse cross-entropy")
    sldc_norm: float = Field(0.1, ge=0.0, description="weight of holding the features' lengths, as a multiple of kd")
    sldc_drift: Literal["alpha_1", "alpha_2", "none"] = Field("alpha_2",
        description="how old Gaussians follow the backbone: by a linear map, a weakly nonlinear one, or not at all")
    sldc_steps: int = Field(5000, ge=0, description="steps in which alpha_2's map is fitted")
    sldc_moment_samples: int = Field(10, ge=1, le=10_000,
        description="features that alpha_2 draws per class, as a multiple of the dimensions")


@learner("sldc")
class SLDC(SLCA):
    Settings = SLDCSettings
    title = "SLDC"
    defaults: ClassVar = {"lr": 1e-3, "bcb_lrscale": 0.1, "weight_decay": 3e-5, "kd": 1.0, "ca_epochs": 6, "ca_lr": 5e-4,
                          "ca_samples": 1024, "ca_mean_decay": 0.0}

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.config.sldc_drift != "none" and self.config.drift != "none":
            raise UserError(f"drift: got {self.config.drift!r}, allowed: 'none' while sldc_drift is {self.config.sldc_drift!r}; set one of "
                            "them to 'none'")

    @classmethod
    def title_of(cls, config: SLDCSettings) -> str:
        """Holding the features is a part of the method and is not named."""
        return f"{super().title_of(config.model_copy(update={'kd': 0.0}))} ({config.sldc_drift.replace('_', ' ')})"

    def prepare_backbone(self, backbone: Backbone) -> Backbone:
        add_lora(backbone.model, self.config.lora_rank, self.config.lora_scale, ("qkv", "fc1", "fc2"))
        return super().prepare_backbone(backbone)

    # Training ------------------------------------------------------------------------------------------------

    def trains(self, name: str) -> bool:
        return super().trains(name) and "lora_" in name

    def classification_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return symmetric_cross_entropy(logits, targets, self.config.sce_a, self.config.sce_b)

    def feature_loss(self, features: Tensor, before: Tensor) -> Tensor:
        return hold_features(features.float(), before.float(), self.config.sldc_norm)

    def make_optimizer(self, task: int) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameter_groups(task), weight_decay=self.config.weight_decay)

    def learning_rate(self, base_lr: float, epoch: int) -> float:
        """Cosine to a third of the backbone's rate, for the head too."""
        c = self.config
        return cosine(base_lr, epoch, c.epochs, floor=min(base_lr, c.lr * c.bcb_lrscale * LAST_SHARE))

    # Drift ---------------------------------------------------------------------------------------------------

    def follow_backbone(self, task: int, monitor: Monitor, operator: Tensor | None = None) -> None:
        if self.config.sldc_drift != "none":
            self.compensate(*paired_features(self, self.backbone_before, task), task)
        else:
            super().follow_backbone(task, monitor, operator)

    def compensate(self, before: Tensor, after: Tensor, task: int) -> None:
        """Move the old Gaussians as the new images' features (n, D) have moved."""
        if not len(before):
            return
        if self.config.sldc_drift == "alpha_1":
            self.gaussians.transport(linear_map(before, after))
            return
        generator = torch_generator(self.config.torch_seed, "drift map", task)
        mixture = fit_mixture(before, after, generator, steps=self.config.sldc_steps)
        copy_from_first(self.fabric, mixture.parameters())
        self.gaussians = self.moved_by(mixture, task)

    @torch.no_grad()
    def moved_by(self, mixture: MixtureMap, task: int) -> ClassGaussians:
        """Gaussians of features that are drawn from the old ones and moved."""
        c, old = self.config, self.gaussians
        generator = torch_generator(c.torch_seed, "drift samples", task, device=self.fabric.device)
        moved = ClassGaussians(old.ridge, cov=old.cov, rank=old.rank, dtype=old.dtype)
        for label, gaussian in enumerate(old.classes):
            count = c.sldc_moment_samples * len(gaussian.mean) if gaussian.count else 0  # a domain may lack a class
            drawn = mixture.move(gaussian.sample(count, 0.0, generator))
            moved.fit(drawn, torch.full((count,), label, device=drawn.device), range(label, label + 1))
        moved.classes = [dataclasses.replace(new, count=g.count) for new, g in zip(moved.classes, old.classes, strict=True)]
        return moved

    # Classifier ----------------------------------------------------------------------------------------------

    def make_alignment(self) -> Alignment:
        return ClassifierRefinement(self.net.heads, lr=self.alignment_rate(0), sce_a=self.config.sce_a, sce_b=self.config.sce_b)

    def alignment_rate(self, epoch: int) -> float:
        c = self.config
        lr = c.lr if c.ca_lr is None else c.ca_lr
        return cosine(lr, epoch, c.ca_epochs, floor=LAST_CA_SHARE * lr)

    def alignment_batch(self) -> int:
        return max(1, round(BATCH_PER_CLASS * len(self.gaussians)))


class ClassifierRefinement(Alignment):
    """Adam on all heads by symmetric cross-entropy."""

    def __init__(self, heads: nn.ModuleList, *, lr: float, sce_a: float, sce_b: float) -> None:
        super().__init__(heads, lr=lr, momentum=0.0, weight_decay=0.0, tau=None)
        self.sce_a, self.sce_b = sce_a, sce_b
        self.optimizer = torch.optim.Adam(self.fused.trained, lr=lr)

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        return symmetric_cross_entropy(self.fused.logits(features), labels, self.sce_a, self.sce_b)
