"""How far the backbone has moved, as one linear map of its features: old statistics follow it without an old image.

Between the backbone before a task, f_{t-1}, and after it, f_t, the features of the new task's images X and Y (n, D) give

    A = (X'X + rho tr(X'X)/D I)^-1 X'(Y - X),    W = I + A;     mu <- mu W,  S <- W' S W,  that is F <- F W

with features as rows and F the factor of a covariance without its ridge. The ridge pulls towards the identity: what the
new images say nothing about stays where it was. The four anchors of each image (mirrored, turned by 90 and by 180 degrees,
patches shuffled) show the backbone more than the new classes. Ideas: SDC (arXiv 2004.00440), SLDC (arXiv 2511.09926).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from lightning_fabric import Fabric
from pydantic import Field
from torch import Tensor

from utils.config import Strict

SHUFFLE_GRID = 4  # patches per side that `shuffle_patches` permutes
RHO = {True: 0.01, False: 0.1}  # with anchors, without; chosen on validation data by the prototype, see docs/beyond.md


class DriftSettings(Strict):
    """Whether and how old statistics follow the backbone."""

    drift: Literal["none", "linear"] = Field("none",
        description="linear: old statistics follow the backbone by a linear map fitted on the new images")
    drift_anchors: bool = Field(True,
        description="fit the map on four altered copies of each image too (mirrored, turned twice, shuffled)")
    drift_rho: float | None = Field(None, ge=0.0,
        description="ridge of the map, as a share of the features' mean square; default 0.01 with anchors, 0.1 "
                    "without")

    @property
    def rho(self) -> float:
        """`drift_rho`, or its default."""
        return RHO[self.drift_anchors] if self.drift_rho is None else self.drift_rho


class DriftSums:
    """X'X and X'(Y - X), each (D, D), added up batch by batch: no feature is kept.

    Args:
        states: how many states of the backbone X is compared with; each has a Y of its own.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu", states: int = 1) -> None:
        self.gram = torch.zeros(dim, dim, dtype=torch.float64, device=device)
        self.cross = torch.zeros(states, dim, dim, dtype=torch.float64, device=device)

    def add(self, before: Tensor, *after: Tensor) -> None:
        """Features of the same images (n, D) before and, of each state, after."""
        x = before.to(self.gram.dtype)
        self.gram += x.T @ x
        for cross, y in zip(self.cross, after, strict=True):
            cross += x.T @ (y.to(x.dtype) - x)

    def add_processes(self, fabric: Fabric) -> None:
        """Take the sums over all processes, each of which saw its part of the images."""
        self.gram = fabric.all_reduce(self.gram, reduce_op="sum")
        self.cross = fabric.all_reduce(self.cross, reduce_op="sum")

    def operator(self, rho: float, state: int = 0) -> Tensor:
        """W (D, D) of a state; the identity when nothing moved or no image was seen."""
        dim, cross = len(self.gram), self.cross[state]
        identity = torch.eye(dim, dtype=self.gram.dtype, device=self.gram.device)
        if not cross.any():
            return identity
        return identity + torch.linalg.solve(self.gram + rho * self.gram.trace() / dim * identity, cross)


def distance_from_identity(operator: Tensor) -> float:
    """|W - I| / |I| in the Frobenius norm: 0 where the backbone did not move."""
    identity = torch.eye(len(operator), dtype=operator.dtype, device=operator.device)
    return (torch.linalg.matrix_norm(operator - identity) / len(operator) ** 0.5).item()


def with_anchors(images: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """The images (N, C, H, W), H = W, and their four anchors, one batch after another."""
    yield images
    yield images.flip(-1)
    yield images.rot90(1, (-2, -1))
    yield images.rot90(2, (-2, -1))
    yield shuffle_patches(images, generator)


def shuffle_patches(images: Tensor, generator: torch.Generator) -> Tensor:
    """Permute each image's 4 x 4 patches, a permutation per image; a margin that does not divide by 4 stays."""
    n, channels, height, width = images.shape
    g, h, w = SHUFFLE_GRID, height // SHUFFLE_GRID, width // SHUFFLE_GRID
    order = torch.rand(n, g * g, generator=generator, device=generator.device).argsort(dim=1).to(images.device)  # (N, 16)
    patches = images[..., : g * h, : g * w].reshape(n, channels, g, h, g, w).permute(0, 2, 4, 1, 3, 5).reshape(n, g * g, channels, h, w)
    patches = patches[torch.arange(n, device=images.device)[:, None], order].reshape(n, g, g, channels, h, w)
    shuffled = images.clone()
    shuffled[..., : g * h, : g * w] = patches.permute(0, 3, 1, 4, 2, 5).reshape(n, channels, g * h, g * w)
    return shuffled
