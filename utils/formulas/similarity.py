"""How alike two representations of the same images are."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_cka(one: Tensor, other: Tensor) -> float:
    """|Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F) of centred X (N, D) and Y (N, E), in [0, 1]: 1 where they differ by a rotation and a scale.

    0 where a representation does not change from image to image. Source: Kornblith et al., ICML 2019, arXiv 1905.00414, section 3.
    """
    x, y = (features.double() - features.double().mean(dim=0) for features in (one, other))
    norm = torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)
    return (torch.linalg.matrix_norm(y.T @ x) ** 2 / norm).item() if norm > 0 else 0.0
