"""FeCAM: Mahalanobis distance with a covariance per class on a frozen backbone (Goswami et al., NeurIPS 2023, arXiv 2309.14062).

Features have length 1. Each class's covariance is shrunk and made a correlation matrix, so that distances of
different classes compare:

    S_s = S + g1 V1 I + g2 V2 (1 - I)      V1, V2: mean of S on and off its diagonal
    d_c(x) = (x - mu_c)' C_c^-1 (x - mu_c)   C_c(i, j) = S_s(i, j) / sqrt(S_s(i, i) S_s(j, j))

g1, g2 are `fecam_gamma1`, `fecam_gamma2`. No Tukey transform: a ViT's features may be negative, and the authors use
none on ViTs. The inverse is kept instead of the covariance, which the distance alone needs: D^2 numbers per class.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from models.base import FLOAT_BYTES
from models.by_class import positions_by_class
from models.first_session import FirstSessionSettings
from models.frozen.ncm import NCM, never_without_images
from models.registry import learner


class FeCAMSettings(FirstSessionSettings):
    """The covariances."""

    fecam_gamma1: float = Field(1.0, ge=0.0,
        description="fecam: shrinkage of the diagonal, g1 of S + g1 V1 I + g2 V2 (1 - I) (its CIFAR-100 with ViT: 1; "
                    "ImageNet-R: 10)")
    fecam_gamma2: float = Field(0.0, ge=0.0,
        description="fecam: shrinkage off the diagonal, g2 (its CIFAR-100 with ViT: 0; ImageNet-R: 10)")


@learner("fecam")
class FeCAM(NCM):
    Settings = FeCAMSettings
    title = "FeCAM"

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        dim = self.net.backbone.dim
        self.precisions = torch.empty(0, dim, dim, device=self.fabric.device)  # (K, D, D) C_c^-1, grows by C_t per task

    def add_statistics(self, features: Tensor, labels: Tensor, classes: range) -> None:
        features = F.normalize(features)
        super().add_statistics(features, labels, classes)
        gamma1, gamma2 = self.config.fecam_gamma1, self.config.fecam_gamma2
        added = [precision(features[found], gamma1, gamma2) for found in positions_by_class(labels, classes)]
        self.precisions = torch.cat([self.precisions, torch.stack(added)])

    def scores(self, features: Tensor) -> Tensor:
        """Minus the distance to each class (N, K)."""
        return never_without_images(-mahalanobis(F.normalize(features), self.class_means, self.precisions))

    def join_statistics(self, other: FeCAM) -> None:
        super().join_statistics(other)
        self.precisions = torch.cat([self.precisions, other.precisions])

    def forget_statistics(self, labels: Collection[int]) -> None:
        self.precisions = self.precisions[self.kept(labels)]
        super().forget_statistics(labels)

    def planned_statistics(self, classes: int, images_per_class: int | None) -> int:
        return super().planned_statistics(classes, images_per_class) + classes * self.net.backbone.dim**2 * FLOAT_BYTES

    def extra_state(self) -> dict[str, Tensor]:
        return {**super().extra_state(), "precisions": self.precisions}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_extra_state(state)
        self.precisions = state["precisions"]


def shrink(covariance: Tensor, gamma1: float, gamma2: float) -> Tensor:
    """S + g1 V1 I + g2 V2 (1 - I) (FeCAM Eq. 5). Args: covariance (D, D)."""
    dim = len(covariance)
    identity = torch.eye(dim, dtype=covariance.dtype, device=covariance.device)
    on = covariance.diagonal().mean()
    off = (covariance.sum() - covariance.trace()) / max(dim * (dim - 1), 1)
    return covariance + gamma1 * on * identity + gamma2 * off * (1 - identity)


def correlation(covariance: Tensor) -> Tensor:
    """C(i, j) = S(i, j) / (s_i s_j), s the standard deviations (FeCAM Eq. 6). Args: covariance (D, D), diagonal above 0."""
    deviations = covariance.diagonal().sqrt()
    return covariance / torch.outer(deviations, deviations)


def precision(features: Tensor, gamma1: float, gamma2: float) -> Tensor:
    """Inverse of the class's shrunk correlation matrix, (D, D) float32.

    Args:
        features: (n, D) of one class; with fewer than two different ones the distance is Euclidean.
    """
    if len(features) > 1:
        shrunk = shrink(features.double().T.cov(), gamma1, gamma2)
        if (shrunk.diagonal() > 0).all():
            return inverse(correlation(shrunk)).float()
    return torch.eye(features.shape[1], device=features.device)


def inverse(matrix: Tensor) -> Tensor:
    """Inverse of a correlation matrix (D, D) by Cholesky; the pseudo-inverse where it has none, or one that is rounding."""
    lower, info = torch.linalg.cholesky_ex(matrix)
    if info == 0:
        found = torch.cholesky_inverse(lower)
        # The trace is at least 1 over the smallest eigenvalue, and D bounds the largest: above this, pinv would cut no direction off.
        if found.trace() * len(matrix) ** 2 * torch.finfo(matrix.dtype).eps < 1:
            return found
    return torch.linalg.pinv(matrix, hermitian=True)


def mahalanobis(features: Tensor, means: Tensor, precisions: Tensor) -> Tensor:
    """(x - mu_c)' P_c (x - mu_c) for every feature and class, (N, K).

    Args:
        features: (N, D); means: (K, D); precisions: (K, D, D).
    """
    distances = []
    for mean, inverse in zip(means, precisions, strict=True):
        offset = features - mean  # (N, D)
        distances.append((offset @ inverse * offset).sum(dim=1))
    return torch.stack(distances, dim=1)
