"""Features averaged over shifted copies of an image: more passes of a network, no training.

What a backbone makes of an image depends on where its patches begin. The average over a few small shifts does so less: its
covariance within a class is smaller, and the classes lie further apart (docs/beyond.md has what it is worth).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

SHIFT = 1 / 28  # of an image's side: 1 pixel of 28, 8 of 224, half a patch of a ViT-B/16
STEPS = {1: [(0, 0)], 5: [(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)]}  # (down, right) of each copy, the image itself first
STEPS[9] = STEPS[5] + [(1, 1), (1, -1), (-1, 1), (-1, -1)]


def shifted(images: Tensor, count: int) -> Iterator[Tensor]:
    """`count` (1, 5 or 9) copies of images (N, C, H, W), the image itself first; its border is repeated where nothing comes from."""
    height, width = images.shape[2:]
    pixels = max(1, round(SHIFT * min(height, width)))
    rows, columns = (torch.arange(size, device=images.device) for size in (height, width))
    for down, right in STEPS[count]:
        copy = images
        if down:
            copy = copy.index_select(2, (rows - down * pixels).clamp(0, height - 1))
        if right:
            copy = copy.index_select(3, (columns - right * pixels).clamp(0, width - 1))
        yield copy


def mean_over_views(features: Callable[[Tensor], Tensor], images: Tensor, count: int) -> Tensor:
    """`features` of images, averaged over `count` shifted copies, (N, D)."""
    if count == 1:
        return features(images)
    return sum(features(copy).float() for copy in shifted(images, count)) / count
