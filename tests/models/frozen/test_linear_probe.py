"""The linear probe: a backbone that stands still, heads that all move."""

import pytest
import torch
from torch.nn import functional as F

from models import resolve_config
from tests.support import StubData, make_config, make_learner
from utils.errors import UserError
from utils.run.monitor import Monitor


def two_tasks():
    generator = torch.Generator().manual_seed(0)
    batches = {t: [(torch.randn(6, 3, 16, 16, generator=generator), torch.tensor([2 * t, 2 * t + 1] * 3))] for t in range(2)}
    return StubData([2, 2], batches)


def test_linear_probe_moves_every_head_and_nothing_of_the_backbone():
    learner = make_learner(make_config(model_name="linear_probe"), two_tasks())
    learner.learn_task(0, Monitor())
    backbone = {name: tensor.clone() for name, tensor in learner.net.backbone.state_dict().items()}
    first_head = learner.net.heads[0].weight.clone()
    learner.learn_task(1, Monitor())
    assert not torch.equal(first_head, learner.net.heads[0].weight)
    assert all(torch.equal(backbone[name], tensor) for name, tensor in learner.net.backbone.state_dict().items())
    assert not any(name.startswith("backbone.") for name in learner.network_state())


def test_its_loss_is_the_cross_entropy_over_all_classes_seen():
    data = two_tasks()
    learner = make_learner(make_config(model_name="linear_probe"), data)
    learner.learn_task(0, Monitor())
    learner.begin_task(1)
    images, labels = data.given[1][0]
    loss, _, _ = learner.training_loss(learner.training_module(1), images, labels)
    features = learner.net.features(images)
    weight = torch.cat([head.weight for head in learner.net.heads])
    logits = features @ weight.T + torch.cat([head.bias for head in learner.net.heads])
    by_hand = (logits.exp().sum(dim=1).log() - logits[torch.arange(6), labels]).mean()
    torch.testing.assert_close(loss, by_hand)
    assert loss > F.cross_entropy(logits[:, 2:], labels - 2)  # old classes' logits take part


def test_a_learning_rate_for_a_frozen_backbone_is_a_user_error():
    with pytest.raises(UserError, match=r"bcb_lrscale: got 0\.1, allowed: 0"):
        resolve_config(make_config(model_name="linear_probe", bcb_lrscale=0.1))
