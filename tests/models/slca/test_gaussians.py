"""Gaussians in factor form against full covariances."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from models.slca.gaussians import ClassGaussians, Gaussian
from tests.support import load_parity
from tests.waits import Waits
from utils.errors import UserError


@pytest.mark.parametrize(("n", "d"), [(1, 5), (2, 5), (5, 5), (6, 5), (40, 5), (30, 64)])
def test_factor_gives_the_unbiased_covariance_exactly(n, d):
    features = torch.randn(n, d, generator=torch.Generator().manual_seed(n)) * 3 + 1
    gaussian = Gaussian.fit(features)
    expected = torch.cov(features.T.double()) if n > 1 else torch.zeros(d, d, dtype=torch.float64)
    torch.testing.assert_close(gaussian.covariance().double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gaussian.mean, features.mean(dim=0))
    assert len(gaussian.factor) <= min(n - 1, d)


def test_means_and_covariances_follow_the_release():
    arrays, _ = load_parity("6_mean_cov")
    gaussians = ClassGaussians(ridge=1e-4)
    for task, classes in enumerate([range(0, 2), range(2, 4)]):
        features = torch.cat([torch.from_numpy(arrays[f"feat{c}"]) for c in classes])
        labels = torch.cat([torch.full((len(arrays[f"feat{c}"]),), c) for c in classes])
        gaussians.fit(features, labels, classes)
        np.testing.assert_allclose(gaussians.means(), arrays[f"after_task{task}/means"], atol=1e-6)
        covariances = torch.stack([g.covariance(gaussians.ridge) for g in gaussians.classes])
        np.testing.assert_allclose(covariances, arrays[f"after_task{task}/covs"], atol=1e-6)


def test_samples_have_the_mean_and_the_covariance_of_the_class():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4, 6, generator=generator) @ torch.randn(6, 6, generator=generator)
    gaussian = Gaussian.fit(features)  # rank 3 in 6 dimensions
    drawn = gaussian.sample(200_000, ridge=0.1, generator=generator).double()
    scale = gaussian.covariance().diagonal().max().item()
    torch.testing.assert_close(drawn.mean(dim=0), gaussian.mean.double(), atol=0.02 * scale, rtol=0)
    torch.testing.assert_close(torch.cov(drawn.T), gaussian.covariance(ridge=0.1).double(), atol=0.02 * scale, rtol=0)


def test_one_image_and_equal_images_can_be_sampled():
    for features in (torch.ones(1, 3), torch.ones(5, 3)):
        gaussian = Gaussian.fit(features)
        assert gaussian.factor.shape == (0, 3)
        drawn = gaussian.sample(1000, ridge=1e-4, generator=torch.Generator().manual_seed(0))
        assert drawn.isfinite().all()
        assert drawn.std(dim=0).mean().item() == pytest.approx(0.01, rel=0.1)


def test_thirty_samples_of_large_deviation_are_fine():
    """The release fails to factorise these (METHOD: the ridge is fixed at 1e-4 in float32)."""
    features = 1000 * torch.randn(30, 768, generator=torch.Generator().manual_seed(0))
    assert Gaussian.fit(features).sample(10, 1e-4, torch.Generator().manual_seed(0)).isfinite().all()


def test_no_image_feature_is_stored():
    features = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    gaussian = Gaussian.fit(features)
    cosine = torch.nn.functional.cosine_similarity((features - features.mean(0))[:, None], gaussian.factor[None], dim=-1)
    assert cosine.abs().max() < 0.99


def test_state_survives_save_and_load_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    gaussians = ClassGaussians()
    gaussians.fit(torch.randn(9, 4, generator=generator), torch.tensor([0] * 6 + [1] * 3), range(2))
    loaded = ClassGaussians()
    loaded.load_state_dict(gaussians.state_dict())
    for a, b in zip(gaussians.classes, loaded.classes, strict=True):
        assert torch.equal(a.mean, b.mean) and torch.equal(a.factor, b.factor) and a.count == b.count


def test_memory_grows_with_images_not_with_the_square_of_dimensions():
    gaussians = ClassGaussians()
    gaussians.fit(torch.randn(10, 768), torch.zeros(10, dtype=torch.long), range(1))
    assert gaussians.nbytes() == (9 + 1) * 768 * 4


def test_a_class_without_images_is_never_sampled():
    gaussians = ClassGaussians()
    gaussians.fit(torch.randn(6, 4), torch.tensor([0, 0, 0, 2, 2, 2]), range(3))
    features, labels = gaussians.sample(gaussians.means(), 5, torch.Generator().manual_seed(0))
    assert labels.tolist() == [0] * 5 + [2] * 5 and features.isfinite().all()


def correlated(n, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) @ torch.randn(d, d, generator=generator) + 3


def test_all_directions_need_no_extra_noise():
    """With as many directions as dimensions the ridge lengthens them, and d normals per draw are enough."""
    gaussian = Gaussian.fit(correlated(50, 5))
    drawn = gaussian.sample(200_000, ridge=2.0, generator=torch.Generator().manual_seed(1)).double()
    expected = gaussian.covariance(ridge=2.0).double()
    torch.testing.assert_close(torch.cov(drawn.T), expected, atol=0.02 * expected.diagonal().max().item(), rtol=0)


def test_low_rank_keeps_the_leading_directions_and_the_total_variance():
    features = correlated(60, 8)
    exact, low = Gaussian.fit(features), Gaussian.fit(features, rank=3)
    assert low.factor.shape == (3, 8)
    assert low.covariance().trace().item() == pytest.approx(exact.covariance().trace().item(), rel=1e-5)
    values, vectors = torch.linalg.eigh(exact.covariance())
    for value, vector in zip(values[-3:], vectors.T[-3:], strict=True):
        torch.testing.assert_close(low.covariance() @ vector, value * vector, atol=1e-3, rtol=1e-3)


def test_noise_of_low_rank_is_the_mean_variance_of_the_other_directions_that_the_images_span():
    n, rank = 20, 5
    features = correlated(n, 50)
    low = Gaussian.fit(features, rank=rank)
    pca = PCA(rank).fit(features.double().numpy())
    # scikit-learn counts n directions, one of which centring takes away
    assert low.noise.item() == pytest.approx(pca.noise_variance_ * (n - rank) / (n - 1 - rank), rel=1e-4)
    assert torch.equal(Gaussian.fit(features, rank=19).factor, Gaussian.fit(features).factor)  # nothing is left out
    assert Gaussian.fit(features, rank=19).noise.item() == 0


def test_diagonal_draws_have_the_variance_of_each_dimension():
    gaussians = ClassGaussians(ridge=1e-4, cov="diag")
    features = correlated(40, 6)
    gaussians.fit(features, torch.zeros(40, dtype=torch.long), range(1))
    drawn, _ = gaussians.sample(gaussians.means(), 100_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.var(dim=0), features.var(dim=0) + 1e-4, rtol=0.03, atol=0)


def test_shared_covariance_pools_the_images_within_their_classes():
    gaussians = ClassGaussians(ridge=1e-4, cov="shared")
    features, labels = torch.cat([correlated(30, 4, 0), correlated(10, 4, 1) + 100]), torch.tensor([0] * 30 + [1] * 10)
    gaussians.fit(features[:30], labels[:30], range(1))
    gaussians.fit(features[30:], labels[30:], range(1, 2))
    expected = (29 * torch.cov(features[:30].T) + 9 * torch.cov(features[30:].T)) / 38
    drawn, found = gaussians.sample(gaussians.means(), 100_000, torch.Generator().manual_seed(0))
    for label in range(2):
        scale = expected.diagonal().max().item()
        torch.testing.assert_close(torch.cov(drawn[found == label].T), expected, atol=0.03 * scale, rtol=0)
    assert gaussians.nbytes() == (2 * 4 + 16) * 4


def test_float16_factors_take_half_the_memory_and_a_too_large_one_stays_whole():
    gaussians = ClassGaussians(dtype=torch.float16)
    features = torch.cat([correlated(5, 6), 1e6 * correlated(5, 6)])
    gaussians.fit(features, torch.arange(2).repeat_interleave(5), range(2))
    assert [g.factor.dtype for g in gaussians.classes] == [torch.float16, torch.float32]
    drawn, _ = gaussians.sample(gaussians.means(), 10, torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.float32 and drawn.isfinite().all()


@pytest.mark.parametrize("kind", [{"cov": "lowrank", "rank": 2}, {"cov": "diag"}, {"cov": "shared"}, {"dtype": torch.float16}])
def test_every_kind_of_covariance_draws_the_same_after_save_and_load(kind):
    gaussians, loaded = ClassGaussians(**kind), ClassGaussians(**kind)
    gaussians.fit(correlated(20, 6), torch.arange(2).repeat_interleave(10), range(2))
    loaded.load_state_dict(gaussians.state_dict())
    first, second = (g.sample(g.means(), 7, torch.Generator().manual_seed(0))[0] for g in (gaussians, loaded))
    assert torch.equal(first, second)
    assert loaded.nbytes() == gaussians.nbytes()


@pytest.mark.parametrize("kind", [{}, {"cov": "lowrank", "rank": 4}, {"cov": "diag"}, {"cov": "shared"}, {"dtype": torch.float16}])
@pytest.mark.parametrize("images", [1, 5, 12])
def test_planned_bytes_are_those_that_are_kept(kind, images):
    gaussians = ClassGaussians(**kind)
    gaussians.fit(correlated(2 * images, 8), torch.arange(2).repeat_interleave(images), range(2))
    assert gaussians.nbytes() == ClassGaussians(**kind).planned_bytes(2, images, 8)


KINDS = [{}, {"cov": "diag"}, {"cov": "shared"}, {"cov": "lowrank", "rank": 3}, {"dtype": torch.float16}]


@pytest.mark.parametrize("kind", KINDS)
def test_drawing_waits_for_nothing_after_the_first_draw(kind):
    gaussians, generator = ClassGaussians(**kind), torch.Generator().manual_seed(0)
    labels = torch.arange(6).repeat_interleave(torch.tensor([9, 9, 0, 4, 30, 31]))
    gaussians.fit(correlated(83, 8), labels, range(6))
    means = gaussians.means()
    gaussians.sample(means, 3, generator)
    with Waits() as waits:
        gaussians.sample(means, 3, generator)
    assert waits.count == 0


def test_classes_of_different_rank_each_draw_their_own_covariance():
    sizes = [3, 3, 12, 7, 7, 1, 40]
    labels = torch.arange(7).repeat_interleave(torch.tensor(sizes))
    gaussians = ClassGaussians(ridge=0.01)
    gaussians.fit(correlated(73, 4), labels, range(7))
    drawn, found = gaussians.sample(gaussians.means(), 60_000, torch.Generator().manual_seed(0))
    for label, gaussian in enumerate(gaussians.classes):
        expected = gaussian.covariance(0.01)
        own = drawn[found == label]
        scale = expected.diagonal().max().item()
        torch.testing.assert_close(torch.cov(own.T), expected, atol=0.04 * scale, rtol=0)
        torch.testing.assert_close(own.mean(dim=0), gaussian.mean, atol=0.03 * scale**0.5, rtol=0)


def test_classes_added_between_two_draws_are_drawn():
    gaussians = ClassGaussians()
    for label in range(3):
        gaussians.fit(correlated(5, 4, label), torch.full((5,), label), range(label, label + 1))
        gaussians.classes = list(gaussians.classes)
        assert gaussians.sample(gaussians.means(), 2, torch.Generator())[1].tolist() == sorted(2 * list(range(label + 1)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_features_that_are_no_numbers_are_one_sentence(kind, bad):
    features = correlated(30, 6)
    features[17, 2] = bad
    with pytest.raises(UserError, match=r"features of class 1 .* not all finite"):
        ClassGaussians(**kind).fit(features, torch.arange(3).repeat_interleave(10), range(3))


def test_thousands_of_dimensions_stay_in_factor_form():
    gaussian = Gaussian.fit(torch.randn(20, 5000, generator=torch.Generator().manual_seed(0)))
    assert gaussian.factor.shape == (19, 5000)
    assert gaussian.sample(4, 1e-4, torch.Generator().manual_seed(0)).isfinite().all()


@pytest.mark.parametrize("kind", [{}, {"cov": "diag"}, {"cov": "shared"}])
@pytest.mark.parametrize(("old", "new"), [(3, 4), (1, 5), (5, 1), (20, 30), (5, 40), (6, 0), (0, 6)])
def test_an_update_gives_what_fitting_all_images_gives(kind, old, new):
    features, labels = correlated(old + new, 8), torch.zeros(old + new, dtype=torch.long)
    updated, whole = ClassGaussians(**kind), ClassGaussians(**kind)
    updated.fit(features[:old], labels[:old], range(1))
    updated.update(0, features[old:])
    whole.fit(features, labels, range(1))
    assert updated[0].count == whole[0].count and updated.nbytes() == whole.nbytes()
    torch.testing.assert_close(updated.means(), whole.means(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(updated[0].covariance(), whole[0].covariance(), rtol=1e-4, atol=1e-4)
    if whole.pooled is not None:
        torch.testing.assert_close(updated.pooled, whole.pooled, rtol=1e-4, atol=1e-3)


def test_an_update_leaves_other_classes_and_the_stored_type_alone():
    gaussians = ClassGaussians(dtype=torch.float16)
    gaussians.fit(correlated(20, 6), torch.arange(2).repeat_interleave(10), range(2))
    other = gaussians[0].factor.clone()
    gaussians.update(1, correlated(5, 6))
    assert torch.equal(gaussians[0].factor, other)
    assert gaussians[1].factor.dtype == torch.float16 and gaussians[1].count == 15


def test_an_update_of_low_rank_keeps_rank_and_total_variance():
    features, labels = correlated(60, 10), torch.zeros(60, dtype=torch.long)
    gaussians, exact = ClassGaussians(cov="lowrank", rank=3), Gaussian.fit(features)
    gaussians.fit(features[:30], labels[:30], range(1))
    gaussians.update(0, features[30:])
    assert gaussians[0].factor.shape == (3, 10)
    assert gaussians[0].covariance().trace().item() == pytest.approx(exact.covariance().trace().item(), rel=1e-4)


def test_a_removed_class_leaves_nothing_and_is_never_drawn():
    gaussians = ClassGaussians()
    gaussians.fit(correlated(30, 6), torch.arange(3).repeat_interleave(10), range(3))
    gaussians.remove(1)
    assert gaussians[1].count == 0 and gaussians[1].factor.numel() == 0 and not gaussians[1].mean.any()
    assert gaussians.sample(gaussians.means(), 4, torch.Generator())[1].unique().tolist() == [0, 2]
    loaded = ClassGaussians()
    loaded.load_state_dict(gaussians.state_dict())
    assert loaded[1].count == 0 and len(loaded) == 3
    loaded.update(1, correlated(4, 6))  # it may come back
    assert loaded[1].count == 4


def test_a_class_cannot_be_taken_out_of_a_shared_covariance():
    gaussians = ClassGaussians(cov="shared")
    gaussians.fit(correlated(20, 6), torch.arange(2).repeat_interleave(10), range(2))
    with pytest.raises(UserError, match="class 1 cannot be forgotten with 'shared'"):
        gaussians.remove(1)
