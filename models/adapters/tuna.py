"""TUNA: an adapter per task and one that all agree on (Wang et al., ICCV 2025, arXiv 2508.08165).

    training     adapter t goes on from adapter t - 1; CosFace on the task's own classes: s cos, the true class s (cos - m)
    universal    per weight the sign of the mean over tasks' adapters, the largest magnitude among those of that sign
    alignment    all heads on features drawn from the classes' Gaussians, cross-entropy of s cos
    scores       softmax of the task's adapter that is surest (least entropy), plus softmax under the universal adapter

t + 2 passes per image. The formulas are `sign_agreement` (convs/states.py), `cosface` and `tuna_probabilities` (utils/formulas/).

Differs from the paper: its authors' schedule for ViTs was not at hand. Alignment follows MOS: Gaussians of the features under
the adapter of the class's own task, learning rate and samples likewise.
"""

from __future__ import annotations

from functools import partial

import torch
from pydantic import Field
from torch import Tensor

from convs.adapters import Adapters
from convs.backbones import Backbone
from convs.heads import HeadFactory, cosine_head
from convs.states import sign_agreement
from models.adapters.aligned import AlignedAdapters, AlignedSettings
from models.adapters.per_task import PassName
from models.registry import learner
from utils.formulas.losses import cosface
from utils.formulas.passes import tuna_probabilities
from utils.run.monitor import Monitor

UNIVERSAL = "universal"  # the adapter's name


class TUNASettings(AlignedSettings):
    """CosFace."""

    tuna_scale: float = Field(20.0, gt=0.0, le=1000.0, description="tuna: scale s of the cosine heads (20)")
    tuna_margin: float = Field(0.0, ge=0.0, le=2.0, description="tuna: margin m of the true class's cosine in stage 1 (0)")


@learner("tuna")
class TUNA(AlignedAdapters):
    Settings = TUNASettings
    title = "TUNA"

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        # it never trains, yet a checkpoint needs it
        self.ever_trained |= {name for name, _ in self.net.named_parameters() if f".adapters.{UNIVERSAL}." in name}

    def prepare_backbone(self, backbone: Backbone) -> Backbone:
        backbone = super().prepare_backbone(backbone)
        adapters = Adapters(backbone.model)
        adapters.add(UNIVERSAL)
        adapters.load(UNIVERSAL, {name: torch.zeros_like(tensor) for name, tensor in adapters.state(UNIVERSAL).items()})
        return backbone

    def head_factory(self) -> HeadFactory:
        return partial(cosine_head, scale=self.config.tuna_scale)

    def classification_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        s = self.config.tuna_scale
        return cosface(logits / s, targets, s, self.config.tuna_margin)

    def end_task(self, task: int, monitor: Monitor) -> None:
        self.adapters.load(UNIVERSAL, sign_agreement([self.adapters.state(t) for t in range(task + 1)]))
        super().end_task(task, monitor)

    def prediction_passes(self) -> list[PassName]:
        """Every task's adapter, then the universal one."""
        return [*super().prediction_passes(), UNIVERSAL]

    def scores(self, features: Tensor) -> Tensor:
        """Sums of two softmaxes (N, K)."""
        logits = self.logits(self.split_passes(features))  # (N, t + 2, K)
        return tuna_probabilities(logits[:, :-1], logits[:, -1])
