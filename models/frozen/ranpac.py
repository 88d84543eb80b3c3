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

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from models.base import FLOAT_BYTES
from models.first_session import FirstSession, FirstSessionSettings
from models.registry import learner
from utils.rng import torch_generator
from utils.run.monitor import Monitor

RIDGES = tuple(10.0**k for k in range(-8, 9))
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
            projected, one_hot = self.project(features), F.one_hot(labels, self.stream.classes_upto(task)).float()
            self.gram += projected.T @ projected
            self.targets = F.pad(self.targets, (0, self.stream.task_sizes[task])) + projected.T @ one_hot
            order = torch.randperm(len(labels), generator=torch_generator(self.config.torch_seed, "ridge", task)).to(labels.device)
            ridge = choose_ridge(projected[order], one_hot[order], rounding(self.gram))
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


def choose_ridge(projected: Tensor, one_hot: Tensor, least: float = 0.0) -> float:
    """lambda >= `least` with the smallest squared error on the last fifth of the images, fitted on the others.

    Args:
        projected: (N, M) in random order; one_hot: (N, K).

    With n images to fit and H = U s V', the prediction is H_val V (s^2 + lambda)^-1 s U' Y: one eigendecomposition of
    the smaller of H H' (n, n) and H' H (M, M) serves all lambdas.
    """
    ridges = [ridge for ridge in RIDGES if ridge >= least] or [least]
    count = int(FIT_SHARE * len(projected))
    if count == 0:
        return ridges[0]  # too few images to choose
    fit, held_out = projected[:count].double(), projected[count:].double()
    targets, wanted = one_hot[:count].double(), one_hot[count:].double()
    dual = len(fit) < fit.shape[1]
    values, vectors = torch.linalg.eigh(fit @ fit.T if dual else fit.T @ fit)
    left = (held_out @ fit.T if dual else held_out) @ vectors  # (n_val, r)
    right = vectors.T @ (targets if dual else fit.T @ targets)  # (r, K)
    errors = [((left / (values.clamp_min(0) + ridge)) @ right - wanted).square().mean() for ridge in ridges]
    return ridges[int(torch.stack(errors).argmin())]


def rounding(gram: Tensor) -> float:
    """Size of the rounding errors in G's eigenvalues (its trace bounds the largest): a smaller lambda would drown in them."""
    return torch.finfo(gram.dtype).eps * gram.trace().item()


def ridge_solution(gram: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """(G + lambda I)^-1 Q, (M, K) float32; solved in float64. Args: gram (M, M); targets (M, K)."""
    regular = gram.double()
    regular.diagonal().add_(ridge)
    return torch.linalg.solve(regular, targets.double()).float()
