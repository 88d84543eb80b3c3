"""FeCAM's shrunk correlation matrix and Mahalanobis distance, element by element."""

import numpy as np
import torch

from models.frozen.fecam import correlation, inverse, mahalanobis, precision, shrink
from tests.models.frozen.test_ncm import learned


def features(count=9, dim=4):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(1))


def test_shrinking_adds_the_mean_variance_to_the_diagonal_and_the_mean_covariance_beside_it():
    covariance = torch.tensor([[4.0, 1.0, 0.0], [1.0, 2.0, -2.5], [0.0, -2.5, 3.0]])
    expected = torch.tensor([[4 + 2 * 3, 1 + 3 * -0.5, 3 * -0.5], [1 + 3 * -0.5, 2 + 2 * 3, -2.5 + 3 * -0.5],
                             [3 * -0.5, -2.5 + 3 * -0.5, 3 + 2 * 3]])
    torch.testing.assert_close(shrink(covariance, 2.0, 3.0), expected)


def test_correlation_has_a_diagonal_of_one_and_numpys_correlations_beside_it():
    torch.testing.assert_close(correlation(features().T.cov()), torch.from_numpy(np.corrcoef(features().T.numpy())).float())


def test_distance_is_the_squared_length_after_whitening():
    """d = |A^-1 (x - mu)|^2 with C = A A', C written out from numpy's covariance."""
    one_class, queries = features(), torch.randn(5, 4)
    covariance = np.cov(one_class.T.numpy().astype(np.float64))
    covariance += np.trace(covariance) / 4 * np.eye(4)  # gamma1 = 1, gamma2 = 0
    deviations = np.sqrt(np.diag(covariance))
    chol = np.linalg.cholesky(covariance / np.outer(deviations, deviations))
    mean = one_class.mean(dim=0)
    whitened = np.linalg.solve(chol, (queries - mean).numpy().T)
    found = mahalanobis(queries, mean[None], precision(one_class, 1.0, 0.0)[None])
    np.testing.assert_allclose(found[:, 0], (whitened**2).sum(axis=0), rtol=1e-4)


def test_a_class_of_one_image_gets_the_euclidean_distance():
    assert torch.equal(precision(features(1), 1.0, 0.0), torch.eye(4))
    assert torch.equal(precision(features(1).repeat(3, 1), 1.0, 0.0), torch.eye(4))


def test_fecam_looks_at_directions_alone():
    learner = learned("fecam")
    query = torch.randn(6, learner.net.backbone.dim)
    torch.testing.assert_close(learner.scores(query), learner.scores(10 * query), rtol=1e-4, atol=1e-4)


def test_the_inverse_is_the_pseudo_inverse_where_both_exist_and_where_only_that_does():
    regular = correlation(shrink(features(9, 6).double().T.cov(), 1.0, 0.0))
    torch.testing.assert_close(inverse(regular), torch.linalg.pinv(regular, hermitian=True), rtol=1e-9, atol=1e-9)
    singular = correlation(features(4, 6).double().T.cov())  # rank 3
    torch.testing.assert_close(inverse(singular), torch.linalg.pinv(singular, hermitian=True), rtol=1e-9, atol=1e-9)
