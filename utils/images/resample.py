"""Resizing of small images as two matrix products per batch.

A resize is linear and separable: out = R image C^T, with one row of weights per output pixel. Building R and C per image
lets every image of a batch have its own crop, and what is linear (brightness, normalisation) can be done on the small
image before it grows. The weights are those of Pillow (`Image.resize`): bicubic with a = -0.5, antialiased when an image
shrinks, nothing read from outside the crop.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Interpolation = Literal["bicubic", "bilinear"]


def _kernel(distance: Tensor, interpolation: Interpolation) -> Tensor:
    """Weight of a pixel at `distance` (in units of the wider of the two grids)."""
    t = distance.abs()
    if interpolation == "bilinear":
        return (1.0 - t).clamp_(min=0.0)
    near = (1.5 * t - 2.5) * t * t + 1.0
    far = ((-0.5 * t + 2.5) * t - 4.0) * t + 2.0
    return torch.where(t < 1.0, near, torch.where(t < 2.0, far, 0.0))


def resize_weights(start: Tensor, length: Tensor, source: int, scaled: int, first: int, target: int,
                   interpolation: Interpolation) -> Tensor:
    """Weights that cut [start, start + length) out of `source` pixels, resize it to `scaled`, keep `target` from `first`.

    Args:
        start, length: (B,) the cut of each image, in whole pixels of the source
    Returns: (B, target, source) float32, each row sums to 1
    Source: Pillow, src/libImaging/Resample.c, precompute_coeffs
    """
    ratio = length.to(torch.float32)[:, None] / scaled  # (B, 1) source pixels per output pixel
    centre = (torch.arange(first, first + target, device=start.device) + 0.5) * ratio  # (B, target)
    width = ratio.clamp(min=1.0)  # antialias: the kernel spreads when the image shrinks
    pixel = torch.arange(source, device=start.device) + 0.5 - start.to(torch.float32)[:, None]  # (B, source)
    weights = _kernel((pixel[:, None, :] - centre[:, :, None]) / width[:, :, None], interpolation)
    inside = (pixel > 0) & (pixel < length[:, None])
    weights = weights * inside[:, None, :]
    return weights / weights.sum(-1, keepdim=True)


def whole_weights(source: int, scaled: int, first: int, target: int, interpolation: Interpolation, device: torch.device) -> Tensor:
    """`resize_weights` of whole images, (1, target, source)."""
    start, length = torch.zeros(1, device=device), torch.full((1,), source, device=device)
    return resize_weights(start, length, source, scaled, first, target, interpolation)


def resized_bytes(images: Tensor, height: int, width: int, interpolation: Interpolation) -> Tensor:
    """(B, C, H, W) uint8 -> (B, C, height, width) uint8, rounded and clipped after each of the two passes, as Pillow does."""
    rows, columns = (whole_weights(source, to, 0, to, interpolation, images.device)
                     for source, to in zip(images.shape[2:], (height, width), strict=True))
    wide = (images.float() @ columns.mT + 0.5).floor_().clamp_(0, 255)  # halves go up there
    return (rows @ wide + 0.5).floor_().clamp_(0, 255).to(torch.uint8)
