"""LDA against the Gaussian log-likelihood, and its covariance over tasks against all images at once."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from models.frozen import lda
from models.frozen.lda import linear_discriminants
from tests.models.frozen.test_ncm import learned
from tests.support import make_learner
from utils.errors import UserError


def test_discriminants_differ_as_the_log_likelihoods_of_gaussians_with_one_covariance_do():
    generator = torch.Generator().manual_seed(0)
    means, queries = torch.randn(3, 5, generator=generator), torch.randn(8, 5, generator=generator)
    root = torch.randn(9, 5, generator=generator)
    covariance, e = root.T @ root / 9, 0.1
    weight, bias = linear_discriminants(means, covariance, e)
    shrunk = (1 - e) * covariance + e * torch.eye(5)
    likelihood = torch.stack([MultivariateNormal(mean, shrunk).log_prob(queries) for mean in means], dim=1)
    scores = queries @ weight.T + bias
    torch.testing.assert_close(scores - scores[:, :1], likelihood - likelihood[:, :1], rtol=1e-4, atol=1e-4)


def test_the_covariance_of_two_tasks_is_that_of_all_images_around_their_class_means():
    learner = learned("lda")
    centred = []
    for task in range(2):
        batch, labels = learner.data.given[task][0]
        features = learner.net.features(batch).detach()
        centred += [features[labels == c] - features[labels == c].mean(dim=0) for c in labels.unique()]
    centred = torch.cat(centred)
    torch.testing.assert_close(learner.scatter / learner.count, centred.T @ centred / len(centred), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["ncm", "lda", "fecam", "ranpac"])
def test_statistics_survive_save_and_load_bit_for_bit(name):
    before = learned(name)
    after = make_learner(before.config, before.data)
    after.load_network_state(before.network_state(), 1)
    after.load_extra_state({key: tensor.clone() for key, tensor in before.extra_state().items()})
    query = torch.randn(6, before.net.backbone.dim)
    assert torch.equal(before.scores(query), after.scores(query))


@pytest.mark.parametrize("name", ["ncm", "lda", "fecam", "ranpac"])
def test_planned_statistics_are_what_is_kept(name):
    learner = learned(name)
    kept = learner.memory_bytes()
    planned = learner.planned_statistics(4, None)
    assert planned <= kept["statistics"] + kept["parameters"] <= planned + 8  # lda counts its images in one int64


def test_the_discriminants_are_solved_once_per_task(monkeypatch):
    solved = []
    monkeypatch.setattr(lda, "linear_discriminants", lambda *args: solved.append(args) or linear_discriminants(*args))
    learner = learned("lda")
    assert len(solved) == 2
    for _ in range(3):
        learner.scores(torch.randn(2, learner.net.backbone.dim))
    assert len(solved) == 2


@pytest.mark.parametrize("shrinkage", [1e-300, 1e-60])
def test_a_shrinkage_that_leaves_no_inverse_is_explained(shrinkage):
    with pytest.raises(UserError, match="lda_shrinkage: got 1e-"):
        linear_discriminants(torch.ones(2, 4), torch.zeros(4, 4), shrinkage)


def test_a_class_without_images_does_not_spoil_the_others():
    weight, bias = linear_discriminants(torch.tensor([[1.0, 0.0], [torch.nan, torch.nan]]), torch.eye(2), 0.1)
    assert weight[0].isfinite().all() and bias[0].isfinite() and weight[1].isnan().all()
