"""LDA: linear discriminant analysis on a frozen backbone, one covariance for all classes (Hayes and Kanan, "Deep SLDA",
CVPR workshops 2020, arXiv 1909.01520).

    L = [(1 - e) S + e I]^-1,   w_c = L mu_c,   b_c = -1/2 mu_c' L mu_c

which ranks classes as the Mahalanobis distance (x - mu_c)' L (x - mu_c) does. S is the mean over all images seen of
(x - mu_c)(x - mu_c)', e = `lda_shrinkage`.

Differs from the paper: classes come whole, so their exact means replace the stream's running ones; the covariance
does not start from a base set of ImageNet classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from models.base import FLOAT_BYTES
from models.first_session import FirstSessionSettings
from models.frozen.ncm import NCM, class_means, never_without_images
from models.registry import learner


class LDASettings(FirstSessionSettings):
    """The covariance."""

    lda_shrinkage: float = Field(1e-4, gt=0.0, le=1.0, description="lda: e of (1 - e) S + e I (Deep SLDA, section 3)")


@learner("lda")
class LDA(NCM):
    Settings = LDASettings
    title = "LDA"

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        dim, device = self.net.backbone.dim, self.fabric.device
        self.scatter = torch.zeros(dim, dim, device=device)  # (D, D) sum over all images seen of (x - mu_c)(x - mu_c)'
        self.count = torch.zeros((), dtype=torch.long, device=device)  # images seen

    def add_statistics(self, features: Tensor, labels: Tensor, classes: range) -> None:
        super().add_statistics(features, labels, classes)
        centred = features - class_means(features, labels, classes)[labels - classes.start]
        self.scatter = self.scatter + centred.T @ centred
        self.count = self.count + len(features)

    def scores(self, features: Tensor) -> Tensor:
        """Linear discriminants (N, K)."""
        weight, bias = linear_discriminants(self.class_means, self.scatter / self.count, self.config.lda_shrinkage)
        return never_without_images(features @ weight.T + bias)

    def planned_statistics(self, classes: int, images_per_class: int | None) -> int:
        return super().planned_statistics(classes, images_per_class) + self.net.backbone.dim**2 * FLOAT_BYTES

    def extra_state(self) -> dict[str, Tensor]:
        return {**super().extra_state(), "scatter": self.scatter, "count": self.count}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_extra_state(state)
        self.scatter, self.count = state["scatter"], state["count"]


def linear_discriminants(means: Tensor, covariance: Tensor, shrinkage: float) -> tuple[Tensor, Tensor]:
    """Weights (K, D) and biases (K,) of the discriminants; solved in float64.

    Args:
        means: (K, D); covariance: (D, D) within classes; shrinkage: e in (0, 1].
    """
    shrunk = (1 - shrinkage) * covariance.double() + shrinkage * torch.eye(len(covariance), device=covariance.device)
    weight = torch.linalg.solve(shrunk, means.double().T).T
    bias = -(weight * means).sum(dim=1) / 2
    return weight.float(), bias.float()
