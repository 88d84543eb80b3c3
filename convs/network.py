"""The incremental network: one backbone and one head per task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convs.backbones import Backbone
from convs.heads import HeadFactory, linear_head

FUSED_FROM = 32  # heads; one product of all is faster than one each, where no gradient is asked for


class IncrementalNet(nn.Module):
    """Backbone f and heads h_0..h_T; logits are the concatenation of all heads.

    Shapes: images (N, C, H, W), features (N, D), logits (N, K) with K classes seen so far.

    Args:
        make_head: makes each task's head, see convs/heads.py.
    """

    def __init__(self, backbone: Backbone, make_head: HeadFactory = linear_head) -> None:
        super().__init__()
        self.backbone = backbone
        self.make_head = make_head
        self.heads = nn.ModuleList()  # one per task, (N, D) -> (N, C_t)
        # Head t multiplies its input by this (SLCA++ feature scaling); 1 except while an aligned SLCA++ is evaluated.
        # Plain numbers: a tensor on the device would stall every forward to be read.
        self.head_scales: list[float] = []

    @property
    def head_sizes(self) -> list[int]:
        return [head.out_features for head in cast("Iterable[nn.Linear]", self.heads)]

    def add_head(self, num_classes: int, generator: torch.Generator | None = None) -> nn.Module:
        """Append a head for `num_classes` new classes, initialised from `generator`."""
        head = self.make_head(self.backbone.dim, num_classes, generator)
        self.heads.append(head.to(next(self.backbone.parameters()).device))
        self.head_scales.append(1.0)
        return head

    def get_extra_state(self) -> Tensor:
        """The heads' scales belong to the state: without them a loaded SLCA++ predicts differently."""
        return torch.tensor(self.head_scales)

    def set_extra_state(self, state: Tensor) -> None:
        self.head_scales = state.tolist()

    def features(self, images: Tensor) -> Tensor:
        return self.backbone(images)  # (N, D)

    def classify(self, features: Tensor) -> Tensor:
        """Features (N, D) -> logits of all classes seen so far (N, K)."""
        if len(self.heads) >= FUSED_FROM and not torch.is_grad_enabled() and all(type(head) is nn.Linear for head in self.heads):
            heads = cast("list[nn.Linear]", list(self.heads))
            weight = torch.cat([head.weight if scale == 1 else head.weight * scale
                                for head, scale in zip(heads, self.head_scales, strict=True)])  # (K, D)
            bias: list[Tensor] = [head.bias for head in heads if head.bias is not None]
            return F.linear(features, weight, torch.cat(bias) if bias else None)
        return torch.cat([head(features if scale == 1 else features * scale)
                          for head, scale in zip(self.heads, self.head_scales, strict=True)], dim=1)  # (N, K)

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.features(images))  # (N, K)


class OwnTask(nn.Module):
    """The network as stage 1 sees it: the logits of one task alone, (N, C_t).

    The loss of the Slow Learner masks all other tasks' logits, so they are not computed at all.
    """

    def __init__(self, net: IncrementalNet, task: int) -> None:
        super().__init__()
        self.backbone, self.head = net.backbone, net.heads[task]

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


class OwnTaskWithFeatures(OwnTask):
    """The same, and the features (N, D) that the logits were computed from; for losses on features."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        features = self.backbone(images)
        return self.head(features), features
