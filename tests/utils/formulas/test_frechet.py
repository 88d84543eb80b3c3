"""The Frechet distance between Gaussians in factor form, against the formula with d x d matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from utils.formulas.frechet import frechet_bound, frechet_distance


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_sqrtm(mean, covariance, other_mean, other_covariance) -> float:
    """The textbook form, with scipy's root of a matrix."""
    root = sqrtm((covariance @ other_covariance).numpy())
    square = (mean - other_mean).square().sum() + torch.trace(covariance + other_covariance) - 2 * np.trace(np.real(root))
    return float(square) ** 0.5


@pytest.mark.parametrize(("rows", "other_rows"), [(20, 30), (3, 20), (20, 4), (3, 4), (6, 6)])
@pytest.mark.parametrize("noise", [None, 1, 6])
def test_it_is_the_formula_with_matrix_roots_for_ranks_above_and_below_the_dimension(rows, other_rows, noise):
    d = 6
    a, b, mean, other = drawn(rows, d, seed=1), drawn(other_rows, d, seed=2), drawn(d, seed=3), drawn(d, seed=4)
    beside = None if noise is None else drawn(noise, seed=5).square()
    covariance = a.T @ a + torch.diag((torch.zeros(1) if beside is None else beside).double().expand(d))
    found = frechet_distance(mean, a, other, b, beside)
    assert found == pytest.approx(by_sqrtm(mean, covariance, other, b.T @ b), rel=1e-5)


def test_equal_gaussians_are_no_way_apart_and_points_as_far_as_their_means():
    a, mean = drawn(4, 9, seed=1), drawn(9, seed=2)
    rotation = torch.linalg.qr(drawn(4, 4, seed=3))[0]  # another factor of the same covariance
    assert frechet_distance(mean, a, mean, rotation @ a) == pytest.approx(0, abs=1e-6)
    nothing = torch.zeros(0, 9)
    assert frechet_distance(mean, nothing, mean + 2, nothing) == pytest.approx(6)


def test_no_matrix_of_the_dimensions_square_is_made(monkeypatch):
    shapes = []
    taken = torch.linalg.svdvals
    monkeypatch.setattr(torch.linalg, "svdvals", lambda matrix: shapes.append(tuple(matrix.shape)) or taken(matrix))
    d = 100_000  # d x d would be 80 GB
    frechet_distance(torch.zeros(d), torch.ones(2, d), torch.ones(d), torch.ones(3, d))
    assert shapes == [(2, 3)]


def test_the_bound_is_never_above_the_distance():
    mean, a = drawn(5, seed=1), drawn(3, 5, seed=2)
    others = [(drawn(5, seed=10 + k), drawn(1 + k, 5, seed=20 + k)) for k in range(5)]
    bounds = frechet_bound(mean, a.norm(), torch.stack([m for m, _ in others]), torch.stack([b.norm() for _, b in others]))
    distances = [frechet_distance(mean, a, m, b) for m, b in others]
    assert all(bound <= distance + 1e-9 for bound, distance in zip(bounds.tolist(), distances, strict=True))
