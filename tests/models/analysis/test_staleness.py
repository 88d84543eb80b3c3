"""Gaussians that are remembered against those that classes have now."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from models.analysis.staleness import Remembered, relative_distance, stored_gaussians
from models.analysis.states import State
from models.slca.gaussian import Gaussian
from models.slca.gaussians import ClassGaussians

LABELS = np.repeat(np.arange(6), 9)
FEATURES = torch.randn(54, 4, generator=torch.Generator().manual_seed(0)) + torch.from_numpy(LABELS)[:, None]
SEEN = SimpleNamespace(train_labels=LABELS)


def state(features: torch.Tensor) -> State:
    return State("s", 0, features, features, {})


def learner(cov: str | None = "full") -> SimpleNamespace:
    """What stores the Gaussians of all classes, or nothing."""
    if cov is None:
        return SimpleNamespace()
    gaussians = ClassGaussians(cov=cov, rank=2 if cov == "lowrank" else None)
    gaussians.fit(FEATURES, torch.from_numpy(LABELS), range(6))
    return SimpleNamespace(gaussians=gaussians)


def shown(cov: str | None, now: torch.Tensor = FEATURES) -> Remembered:
    remembered = Remembered(7, 4)
    for features in (FEATURES, now):
        remembered.show(learner(cov), state(features), SEEN, 6)
    return remembered


@pytest.mark.parametrize("cov", ["full", None])
def test_unmoved_features_are_where_they_were_and_moved_ones_as_far_as_they_moved(cov):
    still, moved = shown(cov), shown(cov, FEATURES + 3)
    assert still.stored == (cov == "full") and still.distances()[6] is None and still.mean_cosines()[6] is None
    assert still.distances()[:6] == pytest.approx([0] * 6, abs=1e-3) and still.mean_cosines()[:6] == pytest.approx([1] * 6)
    spread = Gaussian.fit(FEATURES[:9]).factor.norm().item()
    assert moved.distances()[0] == pytest.approx(6 / spread, rel=1e-3)


@pytest.mark.parametrize("cov", ["full", "lowrank", "diag", "shared"])
def test_every_kind_of_covariance_is_read_as_it_is_drawn_from(cov):
    of = learner(cov)
    drawn, labels = of.gaussians.sample(of.gaussians.means(), 4000, torch.Generator().manual_seed(1))
    found = stored_gaussians(of, 6, 4)[2]
    assert torch.allclose(found.covariance(of.gaussians.ridge), torch.cov(drawn[labels == 2].T), atol=0.2)


def test_the_nearest_are_those_of_all_distances():
    remembered = shown("diag", FEATURES.flip(1) * 1.5)
    everything = sorted((relative_distance(kept, remembered.now[2]), c) for c, kept in enumerate(remembered.kept))
    assert remembered.nearest(2, 3) == [(c, distance) for distance, c in everything[:3]]


def test_features_of_another_number_and_classes_without_spread_have_no_distance():
    remembered = Remembered(6, 9)
    remembered.show(learner(None), state(FEATURES), SEEN, 6)
    assert remembered.distances() == [None] * 6 and remembered.nearest(0, 3) == []
    one = Gaussian.fit(torch.ones(1, 4))
    assert relative_distance(one, one) is None
