"""Factors of covariances, whichever way they are found."""

import pytest
import torch

from models.slca.batches import ClassBatch, class_batches
from models.slca.factors import exact_factors, gram, leading_directions, triangular, triangular_in_float64


def correlated(n: int, d: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) @ torch.randn(d, d, generator=generator) + 3


def factors_of(features: torch.Tensor, labels: torch.Tensor, classes: int) -> dict[int, torch.Tensor]:
    found = {}
    for batch in class_batches(features, labels, range(classes)):
        found.update(zip(batch.labels, exact_factors(batch), strict=True))
    return found


@pytest.mark.parametrize("d", [7, 140, 600])  # float64, one block of a Gram matrix and more; float32
def test_factors_of_classes_of_all_sizes_are_exact(d):
    sizes = [0, 1, 2, 3, d - 1, d, d + 1, d + 2, 2 * d, 2 * d + 3, 40, 41, 37]
    parts = [correlated(n, d, seed) if n else torch.empty(0, d) for seed, n in enumerate(sizes)]
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    for label, factor in factors_of(torch.cat(parts)[order], labels[order], len(sizes)).items():
        n = sizes[label]
        assert factor.shape == (max(min(n - 1, d), 0), d) and factor.dtype == torch.float32
        if n > 1:
            expected = parts[label].double().T.cov()
            torch.testing.assert_close((factor.double().T @ factor.double()), expected, rtol=0, atol=3e-6 * expected.abs().max().item())


@pytest.mark.parametrize("scale", [1e-25, 1e-6, 1e6, 1e18, 1e30])
@pytest.mark.parametrize("n", [5, 700])  # QR, Cholesky
def test_features_of_any_size_have_a_factor(n, scale):
    features = correlated(n, 300)
    found = factors_of(features * scale, torch.zeros(n, dtype=torch.long), 1)[0].double() / scale
    expected = features.double().T.cov()
    torch.testing.assert_close(found.T @ found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_a_singular_covariance_of_many_images_has_a_factor():
    features = correlated(700, 300)
    features[:, 7] = 0  # a feature that never fires
    features[:, 11] = features[:, 12]
    factor = factors_of(features, torch.zeros(700, dtype=torch.long), 1)[0].double()
    expected = features.double().T.cov()
    torch.testing.assert_close(factor.T @ factor, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_a_factor_tells_nothing_of_single_images():
    """It follows from the covariance: other images with the same covariance have the same factor, up to the rows' signs."""
    features = correlated(30, 50)
    mean, turn = features.mean(dim=0), torch.linalg.qr(torch.randn(29, 29, generator=torch.Generator().manual_seed(1))).Q
    ones = torch.linalg.qr(torch.cat([torch.ones(30, 1), torch.eye(30)[:, :29]], dim=1)).Q[:, 1:]  # (30, 29) beside (1, ..., 1)
    others = ones @ turn @ ones.T @ (features - mean) + mean
    assert not torch.allclose(others, features, atol=0.5)
    first, second = (factors_of(each, torch.zeros(30, dtype=torch.long), 1)[0] for each in (features, others))
    signs = (first.diagonal() * second.diagonal()).sign()
    torch.testing.assert_close(first, second * signs[:, None], rtol=1e-3, atol=1e-3)


def test_the_lower_triangle_of_a_gram_matrix_is_there():
    rows = torch.randn(2, 9, 300, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gram(rows).tril(), (rows.mT @ rows).tril())


@pytest.mark.parametrize("m", [0, 3, 8])
def test_triangular_keeps_the_squares(m):
    rows = torch.randn(m, 5, generator=torch.Generator().manual_seed(0))
    found = triangular(rows)
    assert found.shape == (min(m, 5), 5) and torch.equal(found, found.triu())
    torch.testing.assert_close(found.T @ found, rows.T @ rows)


@pytest.mark.parametrize("m", [6, 30])
def test_leading_directions_and_the_variance_left_out(m):
    rows = torch.randn(m, 9, generator=torch.Generator().manual_seed(0))
    factor, left_out = leading_directions(rows[None], 4)
    values = torch.linalg.svdvals(rows).square()
    spanned = min(m, 9)
    torch.testing.assert_close(left_out[0], values[4:spanned].mean())
    torch.testing.assert_close(torch.linalg.svdvals(factor[0]).square(), values[:4] - left_out, rtol=1e-4, atol=1e-4)


def test_classes_of_very_different_sizes_are_not_padded_to_one():
    labels = torch.arange(4).repeat_interleave(torch.tensor([3, 100, 95, 20]))
    batches: list[ClassBatch] = list(class_batches(correlated(218, 6), labels, range(4)))
    assert [batch.labels for batch in batches] == [[1, 2], [3], [0]]


def test_a_gpus_way_to_the_triangle_is_the_cpus():
    """Classes of several sizes, and two whose first columns are singular: dead features, and one image many times."""
    counts = [12, 12, 11, 10, 12, 12]
    rows = torch.randn(len(counts), 11, 16, generator=torch.Generator().manual_seed(0))
    for k, count in enumerate(counts):
        rows[k, count - 1:] = 0
    rows[4, :, :3] = 0
    rows[5] = rows[5, :1]
    ours, theirs = triangular_in_float64(rows, counts), triangular(rows)
    assert torch.allclose(ours.mT @ ours, theirs.mT @ theirs, atol=1e-4)
    assert torch.equal(ours, ours.triu())
    assert all(not ours[k, count - 1:].any() for k, count in enumerate(counts[:4]))
