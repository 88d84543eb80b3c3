"""LDA: linear discriminant analysis on a frozen backbone, one covariance for all classes (Hayes and Kanan, "Deep SLDA",
CVPR workshops 2020, arXiv 1909.01520).

    L = [(1 - e) S + e I]^-1,   w_c = L mu_c,   b_c = -1/2 mu_c' L mu_c

which ranks classes as the Mahalanobis distance (x - mu_c)' L (x - mu_c) does. S is the mean over all images seen of
(x - mu_c)(x - mu_c)', e = `lda_shrinkage`.

Differs from the paper: classes come whole, so their exact means replace the stream's running ones; the covariance
does not start from a base set of ImageNet classes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from pydantic import Field
from torch import Tensor

from models.base import FLOAT_BYTES
from models.first_session import FirstSessionSettings
from models.frozen.ncm import NCM, never_without_images
from models.known_classes import FORGETS
from models.registry import learner
from utils.errors import UserError


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
        self.discriminants: tuple[Tensor, Tensor] | None = None  # weight (K, D) and bias (K,), solved once per task from the above

    def add_statistics(self, features: Tensor, labels: Tensor, classes: range) -> None:
        super().add_statistics(features, labels, classes)
        centred = features - self.class_means[labels]
        self.scatter = self.scatter + centred.T @ centred
        self.count = self.count + len(features)
        self.solve()

    def solve(self) -> None:
        """The discriminants of all classes seen."""
        self.discriminants = linear_discriminants(self.class_means, self.scatter / self.count, self.config.lda_shrinkage)

    def scores(self, features: Tensor) -> Tensor:
        """Linear discriminants (N, K)."""
        weight, bias = self.discriminants
        return never_without_images(features @ weight.T + bias)

    def join_statistics(self, other: LDA) -> None:
        super().join_statistics(other)
        self.scatter, self.count = self.scatter + other.scatter, self.count + other.count
        self.solve()

    def forget_statistics(self, labels: Collection[int]) -> None:
        raise UserError(f"a run of lda cannot forget single classes: its one covariance was made of the images of all. {FORGETS}")

    def planned_statistics(self, classes: int, images_per_class: int | None) -> int:
        return super().planned_statistics(classes, images_per_class) + self.net.backbone.dim**2 * FLOAT_BYTES

    def extra_state(self) -> dict[str, Tensor]:
        return {**super().extra_state(), "scatter": self.scatter, "count": self.count}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_extra_state(state)
        self.scatter, self.count = state["scatter"], state["count"]
        self.solve()


def linear_discriminants(means: Tensor, covariance: Tensor, shrinkage: float) -> tuple[Tensor, Tensor]:
    """Weights (K, D) and biases (K,) of the discriminants; solved in float64.

    Args:
        means: (K, D); covariance: (D, D) within classes; shrinkage: e in (0, 1].

    Raises:
        UserError: the shrunk covariance has no inverse that float32 can hold.
    """
    shrunk = (1 - shrinkage) * covariance.double() + shrinkage * torch.eye(len(covariance), device=covariance.device)
    solution, info = torch.linalg.solve_ex(shrunk, means.double().T)
    weight = solution.T.float()
    if info or weight[means.isfinite().all(dim=1)].isfinite().logical_not().any():  # a class without images has NaN by right
        raise UserError(f"lda_shrinkage: got {shrinkage:g}, with which the features' covariance cannot be inverted; allowed: large "
                        "enough for that, up to 1. Raise it (1e-4 is usual).")
    return weight, (-(weight.double() * means).sum(dim=1) / 2).float()
