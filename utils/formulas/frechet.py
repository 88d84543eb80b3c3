"""How far two Gaussians are apart."""

from __future__ import annotations

import torch
from torch import Tensor


def frechet_distance(mean: Tensor, factor: Tensor, other_mean: Tensor, other_factor: Tensor, noise: Tensor | None = None) -> float:
    """sqrt(|mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))), also called the Wasserstein-2 distance.

    With S_1 = A' A and S_2 = B' B the eigenvalues of S_1 S_2 are the squared singular values of A B', so the last trace is their sum:
    the largest matrix is (r, s), never (d, d). Noise beside A is d rows more of it.

    Args:
        mean: (d,); factor: A (r, d); other_mean: (d,); other_factor: B (s, d).
        noise: variances beside A' A, (d,) or (1,) the same for all: S_1 = A' A + diag(noise).

    Source: Dowson & Landau, J. Multivariate Analysis 1982, eq. 4; its square is what FID measures (Heusel et al., NeurIPS 2017).
    """
    mean, a, other_mean, b = (part.double() for part in (mean, factor, other_mean, other_factor))
    cross, spread = a @ b.T, a.square().sum() + b.square().sum()  # (r, s)
    if noise is not None and bool(noise.any()):
        deviations = noise.double().sqrt().expand(len(mean))
        cross = torch.cat([cross, deviations[:, None] * b.T])  # (r + d, s)
        spread = spread + deviations.square().sum()
    shared = torch.linalg.svdvals(cross).sum() if cross.numel() else cross.new_zeros(())
    return ((mean - other_mean).square().sum() + spread - 2 * shared).clamp_min(0).sqrt().item()


def frechet_bound(mean: Tensor, spread: Tensor, other_means: Tensor, other_spreads: Tensor) -> Tensor:
    """(K,) what `frechet_distance` to K others is at least, without their covariances.

    sqrt(|mu_1 - mu_2|^2 + (sqrt tr S_1 - sqrt tr S_2)^2), since tr (S_1 S_2)^(1/2) <= sqrt(tr S_1 tr S_2) (Cauchy and Schwarz).

    Args:
        mean: (d,); spread: sqrt tr S_1, (); other_means: (K, d); other_spreads: (K,).
    """
    return ((mean - other_means).double().square().sum(dim=1) + (spread - other_spreads).double().square()).sqrt()
