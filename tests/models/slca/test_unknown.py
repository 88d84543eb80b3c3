"""The relative Mahalanobis distance against its definition, and the share of known images that it keeps."""

import pytest
import torch

from models.slca.gaussians import ClassGaussians
from models.slca.unknown import GaussianRegion
from tests.support import learn, synthetic_learner
from utils.formulas.calibration import fit_temperature


def features_of(classes: int, count: int, dim: int, seed: int, apart: float = 4.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Gaussian classes with one covariance, around the first of ten centres."""
    centres = apart * torch.randn(10, dim, generator=torch.Generator().manual_seed(7))
    spread = torch.randn(dim, dim, generator=torch.Generator().manual_seed(8))
    labels = torch.arange(classes).repeat_interleave(count)
    return centres[labels] + torch.randn(len(labels), dim, generator=torch.Generator().manual_seed(seed)) @ spread, labels


def fitted(features: torch.Tensor, labels: torch.Tensor, **how) -> ClassGaussians:
    gaussians = ClassGaussians(**how)
    gaussians.fit(features, labels, range(int(labels.max()) + 1))
    return gaussians


@pytest.mark.parametrize("cov", ["full", "shared"])
def test_the_distance_is_the_one_of_the_paper(cov):
    features, labels = features_of(3, 40, 6, seed=1)
    exact = features.double()
    means = torch.stack([exact[labels == c].mean(dim=0) for c in range(3)])
    centred = exact - means[labels]
    ridge = 1e-4 * torch.eye(6, dtype=torch.float64)
    within = torch.linalg.inv(centred.T @ centred / (len(exact) - 3) + ridge)
    of_all = torch.linalg.inv(exact.T.cov() + ridge)

    def squared(x, mean, inverse):
        return ((x - mean) @ inverse * (x - mean)).sum(dim=1)

    asked = features_of(5, 10, 6, seed=2)[0].double()
    expected = torch.stack([squared(asked, mean, within) for mean in means]).amin(dim=0) - squared(asked, exact.mean(dim=0), of_all)
    found = GaussianRegion(fitted(features, labels, cov=cov)).distances(asked.float())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_the_threshold_keeps_the_stated_share_of_known_images_and_rejects_other_classes():
    known = GaussianRegion(fitted(*features_of(5, 400, 8, seed=1)))
    unseen, labels = features_of(10, 400, 8, seed=3)  # classes 5 to 9 were never learned
    distances = known.distances(unseen)
    for share in (0.9, 0.95, 0.99):
        kept = distances <= known.threshold(share)
        assert kept[labels < 5].double().mean().item() == pytest.approx(share, abs=0.02)
        assert kept[labels >= 5].double().mean() < 0.1


def test_a_forgotten_class_plays_no_part():
    features, labels = features_of(4, 40, 6, seed=1)
    gaussians, without = fitted(features, labels), fitted(features[labels < 3], labels[labels < 3])
    gaussians.remove(3)
    torch.testing.assert_close(GaussianRegion(gaussians).distances(features), GaussianRegion(without).distances(features))
    assert GaussianRegion(gaussians).threshold(0.95) == pytest.approx(GaussianRegion(without).threshold(0.95), rel=0.05)


def test_the_temperature_is_of_old_classes_too_by_features_drawn_from_their_gaussians():
    learner = synthetic_learner("slca", readout="rgda", bcb_lrscale=0.0, val_fraction=0.25)
    learn(learner, [0, 1])
    features, labels = learner.extract("val", 1)
    more, of_all = learner.with_old_classes(features, labels, 1)
    assert torch.equal(more[:len(features)], features) and of_all.bincount().tolist() == [3, 3, 3, 3]
    assert learner.temperature == pytest.approx(fit_temperature(learner.scores(more), of_all))
