"""SSIAT: one adapter for all tasks, semantic shift of the old means (Tan et al., CVPR 2024, arXiv 2403.19979).

    training      one adapter beside every block's MLP goes on through all tasks; cosine heads without bias, each trained on its
                  own task's logits by CosFace(s, m); the pre-trained weights are frozen
    statistics    old means move as the new images near them have moved (`shift_means`)
    alignment     SLCA's, without logit normalisation, by cross-entropy of s cos; aligned heads are where the next one begins

Differs from the authors' code: x and y of the shift are features of the same images, without augmentation. There they come
from two passes of a loader that shuffles and augments, so y_i - x_i is the difference of two images.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from convs.adapters import put_adapters
from convs.backbones import Backbone
from convs.heads import HeadFactory, cosine_head
from models.registry import learner
from models.slca.paired_features import paired_features
from models.slca.slca import SLCA, SLCASettings
from models.stage1 import AfterEpoch, TrainingState
from utils.errors import UserError
from utils.formulas.losses import cosface
from utils.formulas.prototypes import SHIFT_WIDTH, shift_means
from utils.formulas.schedules import cosine
from utils.rng import torch_generator
from utils.run.monitor import Monitor

SHARED = "shared"  # the adapter's name


class SSIATSettings(SLCASettings):
    """The adapter, the loss and the shift."""

    adapter_width: int = Field(64, ge=1, le=100_000, description="width of the adapters' bottleneck")
    cosface_scale: float = Field(20.0, gt=0.0, le=1e6, description="s of the cosine heads and their loss")
    cosface_margin: float = Field(0.0, ge=0.0, le=2.0, description="m: the true class has s (cos - m) in training (ImageNet-A: 0.3)")
    later_epochs: int | None = Field(None, ge=0, le=100_000, description="epochs of every task but the first; default epochs")
    ssiat_shift: bool = Field(True, description="move old means with the new images near them; false leaves them where they were")
    ssiat_shift_width: float = Field(SHIFT_WIDTH, ge=1e-6, le=1e6,
                                     description="s of the kernel exp(-|x - mu|^2 / 2 s^2) that says which are near")


@learner("ssiat")
class SSIAT(SLCA):
    Settings = SSIATSettings
    title = "SSIAT"
    defaults: ClassVar = {"bcb_lrscale": 1.0, "ca_ridge": 1e-3, "ca_start": "aligned"}

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.config.ssiat_shift and self.config.drift != "none":
            raise UserError(f"drift: got {self.config.drift!r}, allowed: 'none' while ssiat_shift moves the old means; set one of them off")

    def head_factory(self) -> HeadFactory:
        return partial(cosine_head, scale=self.config.cosface_scale)

    def prepare_backbone(self, backbone: Backbone) -> Backbone:
        adapters = put_adapters(backbone.model, self.config.adapter_width)
        adapters.add(SHARED, torch_generator(self.config.torch_seed, "adapter"))
        adapters.select(SHARED)
        return super().prepare_backbone(backbone)

    # Training ------------------------------------------------------------------------------------------------

    def trains(self, name: str) -> bool:
        return super().trains(name) and ".adapters." in name

    def train(self, task: int, monitor: Monitor, start: TrainingState | None = None, after_epoch: AfterEpoch | None = None) -> None:
        whole = self.config
        if task > 0 and whole.later_epochs is not None:
            self.config = whole.model_copy(update={"epochs": whole.later_epochs})
        try:
            super().train(task, monitor, start, after_epoch)
        finally:
            self.config = whole

    def planned_images(self, task: int, new: float) -> float:
        c = self.config  # of one epoch; later tasks have `later_epochs` of the `epochs` that are counted
        share = 1.0 if task == 0 or c.later_epochs is None else c.later_epochs / max(c.epochs, 1)
        return super().planned_images(task, new) * share

    def classification_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        c = self.config
        return cosface(logits / c.cosface_scale, targets, c.cosface_scale, c.cosface_margin)

    def learning_rate(self, base_lr: float, epoch: int) -> float:
        return cosine(base_lr, epoch, self.config.epochs)

    # Semantic shift ------------------------------------------------------------------------------------------

    def follow_backbone(self, task: int, monitor: Monitor, operator: Tensor | None = None) -> None:
        if self.config.ssiat_shift:
            self.shift(*paired_features(self, self.backbone_before, task))
        else:
            super().follow_backbone(task, monitor, operator)

    def shift(self, before: Tensor, after: Tensor) -> None:
        """Move the old means by the new images' features (n, D) before and after the task."""
        means = shift_means(self.gaussians.means(), before, after, width=self.config.ssiat_shift_width)
        self.gaussians.classes = [dataclasses.replace(g, mean=mean) for g, mean in zip(self.gaussians.classes, means, strict=True)]
