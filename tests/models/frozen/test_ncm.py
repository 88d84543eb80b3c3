"""Nearest class mean: means, cosines, and that nothing is trained."""

import pytest
import torch
from torch.nn import functional as F

from models.frozen.ncm import class_means
from tests.support import StubData, make_config, make_learner
from utils.errors import UserError
from utils.run.monitor import Monitor


def images(labels, seed):
    return torch.randn(len(labels), 3, 16, 16, generator=torch.Generator().manual_seed(seed)), torch.tensor(labels)


def learned(name="ncm", **settings):
    """A learner after two tasks of two classes each."""
    data = StubData([2, 2], {0: [images([0, 1, 1, 0, 1], 0)], 1: [images([3, 2, 2, 3, 2], 1)]})
    learner = make_learner(make_config(model_name=name, epochs=3, **settings), data)
    for task in range(2):
        learner.learn_task(task, Monitor())
    return learner


def test_ncm_ranks_classes_by_the_angle_to_their_mean_feature():
    learner = learned()
    query = torch.randn(7, learner.net.backbone.dim)
    by_hand = []
    for c in range(4):
        batch, labels = learner.data.given[c // 2][0]
        mean = learner.net.features(batch)[labels == c].mean(dim=0)
        by_hand.append(F.cosine_similarity(query, mean[None]))
    torch.testing.assert_close(learner.scores(query), torch.stack(by_hand, dim=1))


def test_ncm_has_no_head_trains_nothing_and_keeps_one_mean_per_class():
    learner = learned()
    assert len(learner.net.heads) == 0
    assert not learner.backbone_trains
    memory = learner.memory_bytes()
    assert memory == {"images": 0, "features": 0, "statistics": 4 * learner.net.backbone.dim * 4, "parameters": 0}


def test_ncm_does_not_keep_the_features_of_old_training_images():
    assert [key for key in learned().feature_cache if key[0] == "train"] == []


def test_a_class_without_images_never_wins():
    learner = learned()
    learner.class_means = class_means(torch.ones(2, learner.net.backbone.dim), torch.tensor([0, 0]), range(2))
    scores = learner.scores(-torch.ones(1, learner.net.backbone.dim))
    assert scores.argmax() == 0  # although its cosine is -1


@pytest.mark.parametrize("name", ["ncm", "lda", "fecam", "ranpac"])
def test_features_that_are_no_numbers_are_one_sentence(name):
    learner = learned(name)
    next(learner.net.backbone.parameters()).data.fill_(float("nan"))
    learner.feature_cache.clear()
    with pytest.raises(UserError, match="not finite numbers"):
        learner.end_task(1, Monitor())
