"""The linear map that statistics follow the backbone by."""

import pytest
import torch

from models.slca.drift import DriftSums, shuffle_patches, with_anchors
from models.slca.gaussians import ClassGaussians, Gaussian


def made_features(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) + 1


def sums_of(before: torch.Tensor, after: torch.Tensor) -> DriftSums:
    sums = DriftSums(before.shape[1])
    for x, y in zip(before.split(20), after.split(20), strict=True):
        sums.add(x, y)
    return sums


def test_a_known_linear_drift_is_recovered_exactly():
    x = made_features(80, 12)
    drift = torch.eye(12) + 0.3 * torch.randn(12, 12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(sums_of(x, x @ drift).operator(rho=0.0).float(), drift, atol=1e-6, rtol=1e-6)


def test_nothing_moved_is_the_identity():
    x = made_features(60, 9)
    assert torch.equal(sums_of(x, x).operator(rho=0.01), torch.eye(9, dtype=torch.float64))


def test_no_image_is_the_identity():
    assert torch.equal(DriftSums(3).operator(rho=0.1), torch.eye(3, dtype=torch.float64))


def test_several_states_share_one_pass_and_each_gets_its_own_map():
    x, generator = made_features(60, 9), torch.Generator().manual_seed(4)
    states = [x @ (torch.eye(9) + 0.2 * torch.randn(9, 9, generator=generator)) for _ in range(2)]
    together = DriftSums(9, states=2)
    together.add(x, *states)
    for number, state in enumerate(states):
        alone = DriftSums(9)
        alone.add(x, state)
        assert torch.equal(together.operator(0.01, number), alone.operator(0.01))


def test_the_ridge_keeps_directions_without_images_where_they_were():
    x = torch.zeros(50, 4)
    x[:, :2] = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    found = sums_of(x, 2 * x).operator(rho=1e-6).diagonal().float()
    torch.testing.assert_close(found, torch.tensor([2.0, 2, 1, 1]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("count", [6, 60])
@pytest.mark.parametrize("kind", [{}, {"dtype": torch.float16}, {"cov": "lowrank", "rank": 3}, {"cov": "diag"}, {"cov": "shared"}])
def test_moved_statistics_are_those_of_moved_features(count, kind):
    features = made_features(20, 8).repeat(3, 1)[:count]
    features = features + 0.1 * torch.randn(features.shape, generator=torch.Generator().manual_seed(2))
    exact = not kind or kind.get("cov") == "shared"
    drift = torch.eye(8) + (0.3 if exact else 0.02) * torch.randn(8, 8, generator=torch.Generator().manual_seed(3))
    labels = torch.zeros(count, dtype=torch.long)
    before, after = ClassGaussians(**kind), ClassGaussians(**kind)
    before.fit(features, labels, range(1))
    after.fit(features @ drift, labels, range(1))
    before.transport(drift.double())
    tolerance = 1e-5 if exact else 0.15
    torch.testing.assert_close(before.means(), after.means(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(before[0].covariance(), after[0].covariance(), atol=tolerance, rtol=tolerance)
    if before.pooled is not None:
        torch.testing.assert_close(before.pooled, after.pooled, atol=1e-4, rtol=1e-4)


def test_a_moved_gaussian_of_full_rank_draws_its_own_covariance():
    generator = torch.Generator().manual_seed(0)
    gaussian = Gaussian.fit(torch.randn(40, 5, generator=generator)).moved(torch.randn(5, 5, generator=generator).double())
    drawn = gaussian.sample(200_000, 0.5, generator).double()
    expected = gaussian.covariance(0.5).double()
    torch.testing.assert_close(torch.cov(drawn.T), expected, atol=0.02 * expected.diagonal().max().item(), rtol=0)


def test_anchors_are_the_image_mirrored_turned_and_shuffled():
    images = torch.arange(2 * 3 * 9 * 9, dtype=torch.float32).view(2, 3, 9, 9)
    views = list(with_anchors(images, torch.Generator().manual_seed(0)))
    assert len(views) == 5 and torch.equal(views[0], images)
    assert torch.equal(views[1][..., 0], images[..., -1]) and torch.equal(views[3], views[2].rot90(1, (-2, -1)))
    assert all(torch.equal(view.flatten(2).sort().values, images.flatten(2).sort().values) for view in views)  # no pixel is lost
    assert len({view.numpy().tobytes() for view in views}) == 5


def test_patches_keep_their_inside_and_each_image_has_its_own_order():
    images = torch.arange(16.0).view(1, 1, 4, 4).repeat_interleave(2, -1).repeat_interleave(2, -2).expand(8, 1, 8, 8)
    shuffled = shuffle_patches(images, torch.Generator().manual_seed(0))
    patches = shuffled.unfold(2, 2, 2).unfold(3, 2, 2).reshape(8, 16, 4)
    assert (patches == patches[..., :1]).all() and len({p.numpy().tobytes() for p in patches}) == 8
