"""How a method that keeps Gaussians classifies: by its aligned heads, or read from the Gaussians in closed form.

A read-out is chosen once, by `make_readout`; the learner asks it for scores and refreshes it when the statistics change.
"""

from __future__ import annotations

from typing import Literal, Protocol

from pydantic import Field
from torch import Tensor

from convs.network import IncrementalNet
from models.slca.discriminants import GaussianDiscriminant, discriminant, nearest_mean, tells_apart
from models.slca.gaussians import ClassGaussians
from utils.config import Strict


class ReadoutSettings(Strict):
    """Which classifier, and the discriminant's constants."""

    readout: Literal["ca", "rgda", "lda", "qda", "ncm"] = Field("ca",
        description="classifier of methods that keep Gaussians: ca, the aligned "
        "heads (the papers); rgda, lda, qda, closed-form discriminants of the Gaussians; ncm, the nearest class mean")
    rgda_a: float = Field(0.75, ge=0.0, le=1.0,
        description="rgda: share of the covariance that all classes have in common; 0 is qda, 1 is lda")
    rgda_g: float = Field(1e-3, ge=0.0, le=1.0,
        description="rgda, lda, qda: share of the identity in the covariance; 0.01 to 0.1 with far fewer images than "
                    "dimensions")


class Readout(Protocol):
    """A classifier over all classes seen so far."""

    uses_heads: bool  # whether the heads decide, so that aligning them makes sense

    def refresh(self, gaussians: ClassGaussians) -> None:
        """The statistics are new, or have moved."""

    def scores(self, net: IncrementalNet, features: Tensor) -> Tensor:
        """Features (N, D) -> one score per class (N, K); the largest wins."""

    def tells_apart(self, gaussians: ClassGaussians) -> bool:
        """Whether the classes' own means get different scores; extreme variances leave nothing of them in float32."""


class AlignedHeads:
    """The papers' classifier: all heads side by side."""

    uses_heads = True

    def refresh(self, gaussians: ClassGaussians) -> None:
        pass

    def scores(self, net: IncrementalNet, features: Tensor) -> Tensor:
        return net.classify(features)

    def tells_apart(self, gaussians: ClassGaussians) -> bool:
        return True


class Discriminant:
    """Regularised discriminant analysis of the Gaussians: `a` 1 is LDA, 0 QDA, between them RGDA (models/slca/discriminants.py)."""

    uses_heads = False

    def __init__(self, a: float, g: float) -> None:
        self.a, self.g = a, g
        self.fitted: GaussianDiscriminant | None = None  # of all classes seen

    def refresh(self, gaussians: ClassGaussians) -> None:
        self.fitted = self.fit(gaussians) if len(gaussians) else None

    def fit(self, gaussians: ClassGaussians) -> GaussianDiscriminant:
        return discriminant(gaussians.classes, a=self.a, g=self.g, ridge=gaussians.ridge, pooled=gaussians.pooled_covariance())

    def scores(self, net: IncrementalNet, features: Tensor) -> Tensor:
        assert self.fitted is not None, "no class has been learned yet"
        return self.fitted(features)

    def tells_apart(self, gaussians: ClassGaussians) -> bool:
        return self.fitted is None or tells_apart(self.fitted, gaussians.classes)


class NearestMean(Discriminant):
    """The nearest class mean, Q_c = I."""

    def __init__(self) -> None:
        super().__init__(a=1.0, g=1.0)

    def fit(self, gaussians: ClassGaussians) -> GaussianDiscriminant:
        return nearest_mean(gaussians.classes)


def make_readout(settings: ReadoutSettings) -> Readout:
    """The read-out that the settings ask for."""
    if settings.readout == "ca":
        return AlignedHeads()
    if settings.readout == "ncm":
        return NearestMean()
    return Discriminant({"rgda": settings.rgda_a, "lda": 1.0, "qda": 0.0}[settings.readout], settings.rgda_g)
