"""RanPAC: ridge regression on a random projection of frozen features (McDonnell et al., NeurIPS 2023, arXiv 2307.02251).

    h = relu(f W),  W (D, M) standard normal     G = sum h h',  Q = sum h y'     W_o = (G + lambda I)^-1 Q

lambda is chosen anew in every task from 10^-8 ... 10^8: fitted on 80% of the task's images, the value with the
smallest squared error on the other 20% (training images; no test image is seen).

Phase 1 of the paper tunes a few parameters on the first task: `first_session` "adapter", "ssf", "vpt_deep"; "none", the
default, is its row "No Phase 1".

Differs from the paper: the split is a drawn permutation; lambda is searched by one exact eigendecomposition instead of
17 solves in float32. There rounding rules out the smallest lambdas by itself; here those below the rounding of G are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from models.base import FLOAT_BYTES
from models.by_class import require_finite
from models.first_session import FirstSession, FirstSessionSettings
from models.registry import learner
from utils.rng import torch_generator
from utils.run.monitor import Monitor

RIDGES = tuple(10.0**k for k in range(-8, 9))
PROJECTED_AT_ONCE = 2**11  # images; bounds memory at (this, M)
FIT_SHARE = 0.8  # of the task's images; the rest chooses lambda


class RanPACSettings(FirstSessionSettings):
    """The projection."""

    ranpac_dim: int = Field(10_000, ge=1, le=100_000,
        description="ranpac: width M of the random projection (paper: 10000); keeps M x M numbers")


@learner("ranpac")
class RanPAC(FirstSession):
    Settings = RanPACSettings
    title = "RanPAC"

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        dim, width, device = self.net.backbone.dim, self.config.ranpac_dim, self.fabric.device
        generator = torch_generator(self.config.torch_seed, "projection")
        self.projection = torch.randn(dim, width, generator=generator).to(device)  # (D, M) W, follows from the seed
        self.gram = torch.zeros(width, width, device=device)  # (M, M) G, over all images seen
        self.targets = torch.zeros(width, 0, device=device)  # (M, K) Q, grows by C_t per task
        self.weights = torch.zeros(width, 0, device=device)  # (M, K) W_o, solved anew in every task

    @classmethod
    def title_of(cls, config: RanPACSettings) -> str:
        return f"{cls.title} (no phase 1)" if config.first_session == "none" else super().title_of(config)

    def project(self, features: Tensor) -> Tensor:
        """relu(f W), (N, M)."""
        return F.relu(features @ self.projection)

    def end_task(self, task: int, monitor: Monitor) -> None:
        with monitor.stage("statistics"):
            features, labels = self.extract("train", task)
            require_finite(features, labels)
            own = labels - self.stream.classes_before(task)
            one_hot = F.one_hot(own, self.stream.task_sizes[task]).bool()  # (N, C_t)
            added = torch.zeros(len(self.gram), self.stream.task_sizes[task], device=features.device)
            for part, wanted in zip(features.split(PROJECTED_AT_ONCE), one_hot.split(PROJECTED_AT_ONCE), strict=True):
                projected = self.project(part)
                self.gram.addmm_(projected.T, projected)
                added.addmm_(projected.T, wanted.float())
            self.targets = torch.cat([self.targets, added], dim=1)
            order = torch.randperm(len(labels), generator=torch_generator(self.config.torch_seed, "ridge", task)).to(labels.device)
            ridge = choose_ridge(features[order], one_hot[order], rounding(self.gram), self.project)
            self.weights = ridge_solution(self.gram, self.targets, ridge)
            monitor.log(f"statistics: lambda {ridge:g}")

    def scores(self, features: Tensor) -> Tensor:
        """Regressed indicators (N, K)."""
        return self.project(features) @ self.weights

    # State ---------------------------------------------------------------------------------------------------

    def extra_state(self) -> dict[str, Tensor]:
        return {"gram": self.gram, "targets": self.targets, "weights": self.weights}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        self.gram, self.targets, self.weights = state["gram"], state["targets"], state["weights"]

    def planned_statistics(self, classes: int, images_per_class: int | None) -> int:
        return self.config.ranpac_dim * (self.config.ranpac_dim + 2 * classes + self.net.backbone.dim) * FLOAT_BYTES

    def memory_bytes(self) -> dict[str, int]:
        return {**super().memory_bytes(), "statistics": self.gram.nbytes + self.targets.nbytes,
                "parameters": super().memory_bytes()["parameters"] + self.projection.nbytes + self.weights.nbytes}


def choose_ridge(features: Tensor, one_hot: Tensor, least: float = 0.0, project: Callable[[Tensor], Tensor] | None = None) -> float:
    """lambda >= `least` with the smallest squared error on the last fifth of the images, fitted on the others.

    Args:
        features: (N, D) in random order; one_hot: (N, C), the task's own classes (all others are 0, and fitted without error).
        project: features -> h (n, M), applied to a part of the images at a time, so that h of all of them is never there; None:
            the features are h.

    With n images to fit and H = U s V', the prediction is H_val V (s^2 + lambda)^-1 s U' Y: one eigendecomposition of
    the smaller of H H' (n, n) and H' H (M, M) serves all lambdas.
    """
    ridges = [ridge for ridge in RIDGES if ridge >= least] or [least]
    count = int(FIT_SHARE * len(features))
    if count == 0:
        return ridges[0]  # too few images to choose

    def parts(first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
        """h (n, M) and targets (n, C) in float64, a part of the images after the other."""
        for start in range(first, last, PROJECTED_AT_ONCE):
            part = slice(start, min(start + PROJECTED_AT_ONCE, last))
            h = features[part] if project is None else project(features[part])
            yield h.double(), one_hot[part].double()

    width = next(parts(0, 1))[0].shape[1]
    if count < width:
        fit, right = torch.cat([h for h, _ in parts(0, count)]), one_hot[:count].double()  # (n, M) with n < M
        square = fit @ fit.T
    else:
        fit = None
        square, right = (torch.zeros(width, size, dtype=torch.float64, device=features.device) for size in (width, one_hot.shape[1]))
        for h, targets in parts(0, count):
            square.addmm_(h.T, h)
            right.addmm_(h.T, targets)
    values, vectors = torch.linalg.eigh(square)
    right = vectors.T @ right  # (r, C)
    errors = torch.zeros(len(ridges), dtype=torch.float64, device=features.device)
    for h, wanted in parts(count, len(features)):
        left = (h if fit is None else h @ fit.T) @ vectors  # (n_val, r)
        errors += torch.stack([((left / (values.clamp_min(0) + ridge)) @ right - wanted).square().sum() for ridge in ridges])
    return ridges[int(errors.argmin())]


def rounding(gram: Tensor) -> float:
    """Size of the rounding errors in G's eigenvalues (its trace bounds the largest): a smaller lambda would drown in them."""
    return torch.finfo(gram.dtype).eps * gram.trace().item()


def ridge_solution(gram: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """(G + lambda I)^-1 Q, (M, K) float32; solved in float64. Args: gram (M, M); targets (M, K)."""
    regular = gram.double()
    regular.diagonal().add_(ridge)
    return torch.linalg.solve(regular, targets.double()).float()
