"""Linear CKA."""

from __future__ import annotations

import pytest
import torch

from utils.formulas.similarity import linear_cka


def test_a_rotation_a_scale_and_a_shift_change_nothing() -> None:
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))[0]
    assert linear_cka(x, 3 * x @ rotation + 1) == pytest.approx(1.0)


def test_it_is_that_of_centred_gram_matrices() -> None:
    x, y = (torch.randn(20, d, generator=torch.Generator().manual_seed(d), dtype=torch.float64) for d in (3, 5))
    centre = torch.eye(20, dtype=torch.float64) - 1 / 20
    k, m = (centre @ f @ f.T @ centre for f in (x, y))
    assert linear_cka(x, y) == pytest.approx(((k * m).sum() / (k.norm() * m.norm())).item(), rel=1e-5)


def test_features_that_never_change_are_like_nothing() -> None:
    assert linear_cka(torch.ones(5, 2), torch.randn(5, 2)) == 0.0
