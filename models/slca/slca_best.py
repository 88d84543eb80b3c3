"""SLCA as one would run it in 2026: the parts of this folder switched on, and nothing else (docs/beyond.md has what each is worth).

- Features are the class token beside mean and deviation of the patch tokens, of the last and of an inner block, in one pass,
  averaged over five shifted copies of the image for statistics and test.
- LoRA on every linear layer of the blocks trains fast, held to the features before the task by distillation; the state that is
  deployed moves as far as held-out images of the new task and features drawn from the old classes' Gaussians allow, or stays.
- Old statistics follow the deployed state by the drift operator with anchors.
- The classifier is read from the Gaussians by a regularised discriminant.

Each is a setting of GaussianLearner; this class holds their defaults and says which parameters train. No image of an old task is kept.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from convs.backbones import Backbone
from convs.lora import add_lora
from models.registry import learner
from models.slca.slca import SLCA, SLCASettings
from utils.config import Fraction
from utils.formulas.schedules import cosine


class SLCABestSettings(SLCASettings):
    """Other defaults, and the LoRA factors."""

    features: str | list[str] = Field(default_factory=lambda: ["cls", "mean", "std", "mean@-2", "std@-2"],
        description="what statistics and read-out see, joined from one pass")
    views: Literal[1, 5, 9] = Field(5, description="shifted copies of an image over which its feature is averaged")
    readout: Literal["ca", "rgda", "lda", "qda", "ncm"] = Field("rgda", description="classifier, read from the Gaussians")
    rgda_a: float = Field(0.9, ge=0.0, le=1.0, description="share of the covariance that all classes have in common")
    drift: Literal["none", "linear"] = Field("linear", description="old statistics follow the deployed backbone")
    kd: float = Field(1.0, ge=0.0, description="weight of the distance to the features before the task")
    move: Literal["trained", "average", "auto"] = Field("auto", description="how far the deployed backbone moves")
    val_fraction: Fraction = Field(0.1,
        description="share of each class's training images that `move` decides on; the statistics take them too")
    lora_rank: int = Field(16, ge=1, le=100_000, description="rank of the LoRA factors")
    lora_scale: float = Field(2.0, gt=0.0, description="W + lora_scale B A")
    lora_targets: list[Literal["qkv", "fc1", "fc2"]] = Field(default_factory=lambda: ["qkv", "fc1", "fc2"], min_length=1,
        description="layers with LoRA")


@learner("slca_best")
class SLCABest(SLCA):
    Settings = SLCABestSettings
    title = "SLCA best"
    defaults: ClassVar = {"bcb_lrscale": 1.0}

    def prepare_backbone(self, backbone: Backbone) -> Backbone:
        if self.config.bcb_lrscale > 0:
            add_lora(backbone.model, self.config.lora_rank, self.config.lora_scale, self.config.lora_targets)
        return super().prepare_backbone(backbone)

    def trains(self, name: str) -> bool:
        return super().trains(name) and "lora_" in name

    def learning_rate(self, base_lr: float, epoch: int) -> float:
        return cosine(base_lr, epoch, self.config.epochs)
