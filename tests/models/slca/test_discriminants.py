"""Read-outs of the Gaussians against scikit-learn and against the formula written out with full matrices."""

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis

from models.slca.discriminants import discriminant, nearest_mean, tells_apart
from models.slca.gaussians import ClassGaussians
from utils.formulas.calibration import fit_temperature

CLASSES = 6


def made_features(per_class: list[int], dim: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (N, D) of classes whose means and covariances all differ, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for n in per_class:
        mix = torch.randn(dim, dim, generator=generator) / dim**0.5 * torch.rand(dim, generator=generator)
        parts.append(torch.randn(n, dim, generator=generator) @ mix + 3 + 0.4 * torch.randn(dim, generator=generator))
    return torch.cat(parts), torch.arange(len(per_class)).repeat_interleave(torch.tensor(per_class))


def fitted(per_class: list[int], dim: int, **kind) -> tuple[ClassGaussians, torch.Tensor, torch.Tensor]:
    features, labels = made_features(per_class, dim)
    gaussians = ClassGaussians(1e-4, **kind)
    gaussians.fit(features, labels, range(len(per_class)))
    return gaussians, features, labels


def scores_by_hand(gaussians: ClassGaussians, x: torch.Tensor, a: float, g: float, ridge: float) -> torch.Tensor:
    """The formula of the module's docstring with full covariances in float64."""
    pooled = gaussians.pooled_covariance()
    own = [(c.covariance() if pooled is None else pooled).double() for c in gaussians.classes]
    shared = sum(own) / len(own)
    scores = []
    for gaussian, s in zip(gaussians.classes, own, strict=True):
        q = (1 - a) * s + a * shared
        q = (1 - g) * q + (g * q.trace() / len(q) + ridge) * torch.eye(len(q))
        z = x.double() - gaussian.mean.double()
        scores.append(-0.5 * (z * torch.linalg.solve(q, z.T).T).sum(1) - 0.5 * torch.logdet(q))
    return torch.stack(scores, dim=1)


def test_a_1_decides_as_scikit_learns_lda_and_a_0_as_its_qda():
    gaussians, features, labels = fitted([60] * CLASSES, 8)
    x = made_features([200] * CLASSES, 8, seed=0)[0]
    priors = np.full(CLASSES, 1 / CLASSES)
    lda, qda = LinearDiscriminantAnalysis(solver="lsqr", priors=priors), QuadraticDiscriminantAnalysis(priors=priors)
    for a, reference in ((1.0, lda), (0.0, qda)):
        theirs = reference.fit(features.numpy(), labels.numpy()).predict(x.numpy())
        ours = discriminant(gaussians.classes, a=a, g=0.0, ridge=1e-12)(x).argmax(dim=1)
        assert (ours.numpy() == theirs).all()
        assert len(set(theirs)) == CLASSES and (theirs != np.repeat(np.arange(CLASSES), 200)).any()  # neither trivial nor perfect


@pytest.mark.parametrize(("a", "g"), [(0.75, 1e-3), (0.0, 0.1), (1.0, 0.0), (0.3, 1.0)])
@pytest.mark.parametrize("per_class", [[12] * CLASSES, [90] * CLASSES, [1, 5, 30, 31, 40, 90]])
def test_scores_are_the_formula(per_class, a, g):
    gaussians, features, _ = fitted(per_class, 30)
    expected = scores_by_hand(gaussians, features, a, g, ridge=1e-4)
    found = discriminant(gaussians.classes, a=a, g=g, ridge=1e-4)(features).double()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * expected.diff(dim=1).abs().median().item())
    assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.995


@pytest.mark.parametrize("a", [0.25, 0.75, 0.95])
def test_woodbury_equals_dense(a):
    gaussians, features, _ = fitted([40] * CLASSES, 64)
    dense, woodbury = (discriminant(gaussians.classes, a=a, g=1e-2, ridge=1e-4, form=form)(features) for form in ("dense", "woodbury"))
    torch.testing.assert_close(woodbury, dense, rtol=1e-4, atol=1e-4)
    assert not torch.equal(woodbury, dense)  # they are two computations


@pytest.mark.parametrize("kind", [{"cov": "diag"}, {"cov": "shared"}, {"cov": "lowrank", "rank": 5}, {"dtype": torch.float16}])
def test_every_kind_of_covariance_is_read(kind):
    gaussians, features, _ = fitted([50] * CLASSES, 16, **kind)
    expected = scores_by_hand(gaussians, features, 0.5, 1e-2, ridge=1e-4)
    found = discriminant(gaussians.classes, a=0.5, g=1e-2, ridge=1e-4, pooled=gaussians.pooled_covariance())(features)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)


def test_memory_at_inference_is_n_times_d_per_class():
    gaussians, _, _ = fitted([10] * 8, 256)
    kept = discriminant(gaussians.classes, a=0.75, g=1e-2, ridge=1e-4).nbytes()
    rows, shared = 8 * 9 * 256 * 4, 256 * 256 * 4
    assert kept < rows + shared + 8 * 256 * 2 * 8 + 256 * 4 + 8 * 9 * 12 + 200  # rows, U, means and variances; 8 D x D would be 2 MB
    assert len(discriminant(gaussians.classes, a=1.0, g=1e-2, ridge=1e-4).rows) == 0


def test_nearest_mean_is_the_nearest_mean():
    gaussians, features, _ = fitted([9] * CLASSES, 20)
    assert torch.equal(nearest_mean(gaussians.classes)(features).argmax(1), torch.cdist(features, gaussians.means()).argmin(1))


@pytest.mark.parametrize("read", [nearest_mean, lambda classes: discriminant(classes, a=0.75, g=1e-2, ridge=1e-4)])
def test_a_class_without_images_never_wins(read):
    gaussians, features, _ = fitted([20, 0, 20], 6)
    scores = read(gaussians.classes)(torch.cat([features, torch.zeros(1, 6)]))
    assert (scores[:, 1] == -torch.inf).all() and scores[:, [0, 2]].isfinite().all()
    assert fit_temperature(scores[:-1], scores[:-1].argmax(1)) > 0


def test_read_out_can_be_exported():
    gaussians, features, _ = fitted([20] * 3, 32)
    read_out = discriminant(gaussians.classes, a=0.75, g=1e-2, ridge=1e-4)
    program = torch.export.export(read_out, (features,), dynamic_shapes=({0: torch.export.Dim("images", min=2)},))
    torch.testing.assert_close(program.module()(features[:7]), read_out(features[:7]), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("form", ["dense", "woodbury"])
@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
def test_features_of_any_size_have_a_read_out(form, scale):
    features, labels = made_features([40] * CLASSES, 30)
    features[:, 3] = 0
    gaussians = ClassGaussians(1e-4)
    gaussians.fit(features * scale, labels, range(CLASSES))
    found = discriminant(gaussians.classes, a=0.0, g=0.0, ridge=1e-4, form=form)
    assert found(features * scale).isfinite().all() and tells_apart(found, gaussians.classes)


def test_scores_that_are_all_equal_are_noticed():
    gaussians, _, _ = fitted([20] * CLASSES, 8)
    assert tells_apart(discriminant(gaussians.classes, a=0.5, g=0.0, ridge=1e-4), gaussians.classes)
    assert not tells_apart(discriminant(gaussians.classes, a=0.5, g=0.0, ridge=1e30), gaussians.classes)
