"""APER: pre-trained features beside adapted ones, class means of both, cosine."""

import pytest
import torch

from tests.models.test_first_session import SMALL, images
from tests.support import learn, micro_backbone, synthetic_learner


def aper(kind="adapter", **settings):
    learner = synthetic_learner("aper", **{**SMALL, "first_session": kind, **settings})
    learn(learner, range(2))
    learner.net.eval()
    return learner


@pytest.mark.parametrize("kind", ["adapter", "ssf", "vpt_shallow", "vpt_deep", "full", "lora"])
def test_features_are_the_pretrained_ones_beside_the_adapted_ones(kind):
    learner = aper(kind, lr=0.1)
    x = images(learner)
    with torch.no_grad():
        both = learner.features(x)
        assert torch.equal(both[:, :16], micro_backbone().eval()(x))
        assert torch.equal(both[:, 16:], learner.net.backbone(x))
    assert not torch.allclose(both[:, :16], both[:, 16:], atol=1e-3) and both.shape[1] == learner.feature_dim


def test_scores_are_cosines_with_the_class_means_of_both():
    learner = aper()
    x = images(learner)
    with torch.no_grad():
        found, both = learner.scores(learner.features(x)), learner.features(x)
        for c in range(4):
            batches = list(learner.data.batches("train", c // 2, batch_size=64, augment=False))
            of_class = torch.cat([learner.features(images)[labels == c] for images, labels in batches])
            mean = of_class.sum(dim=0) / len(of_class)
            for row in range(len(x)):
                by_hand = (both[row] * mean).sum() / (both[row].square().sum().sqrt() * mean.square().sum().sqrt())
                torch.testing.assert_close(found[row, c], by_hand, rtol=1e-4, atol=1e-5)


def test_without_the_adaptation_it_is_the_nearest_class_mean():
    """Wrong-way check: an adapter that does not move leaves ncm's cosines, one that moves does not."""
    ncm, idle, moved = synthetic_learner("ncm"), aper(lr=1e-12), aper(lr=0.5)
    learn(ncm, range(2))
    with torch.no_grad():
        plain, still, other = (learner.scores(learner.features(images(learner))) for learner in (ncm, idle, moved))
    torch.testing.assert_close(still, plain, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(other, plain, atol=1e-5)


def test_the_pretrained_backbone_is_kept_only_where_all_of_it_trains():
    adapter, full = aper(), aper("full")
    assert not adapter.pretrained
    sizes = sum(tensor.nbytes for tensor in full.pretrained.values())
    assert sizes == sum(tensor.nbytes for tensor in micro_backbone().state_dict().values())
    assert adapter.memory_bytes()["statistics"] == full.memory_bytes()["statistics"] == 4 * 32 * 4 == adapter.planned_statistics(4, None)
    assert full.memory_bytes()["parameters"] == 2 * sizes
