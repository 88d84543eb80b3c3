"""SSIAT: what trains, its loss, the shift of old means, alignment of cosine heads."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from convs.heads import CosineHead
from models.slca.alignment import Alignment
from tests.support import learn, make_config, synthetic_learner
from utils.errors import UserError
from utils.run.monitor import Monitor


def test_only_the_adapter_and_the_new_head_move():
    learner = synthetic_learner("ssiat")
    before = {name: p.detach().clone() for name, p in learner.net.named_parameters()}
    learn(learner, [0, 1])
    moved = {name for name, p in learner.net.named_parameters() if name in before and not torch.equal(p, before[name])}
    assert moved and all(".adapters.shared." in name for name in moved)


def test_the_loss_is_cosface_on_the_new_task_s_cosines():
    learner = synthetic_learner("ssiat", cosface_scale=7.0, cosface_margin=0.3)
    learner.begin_task(0)
    images, labels = next(iter(learner.data.batches("train", 0, batch_size=8, augment=False)))
    learner.net.eval()
    loss, _, _ = learner.training_loss(learner.training_module(0), images, labels)
    expected = 0.0
    for feature, label in zip(learner.net.features(images), labels.tolist(), strict=True):
        cosines = [F.cosine_similarity(feature, w, dim=0).item() for w in learner.net.heads[0].weight]
        logits = [7 * (cos - 0.3 * (k == label)) for k, cos in enumerate(cosines)]
        expected += (math.log(sum(map(math.exp, logits))) - logits[label]) / len(labels)
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_old_means_follow_a_translation_exactly():
    learner = synthetic_learner("ssiat")
    learn(learner, [0])
    means, features = learner.gaussians.means(), torch.randn(30, 16)
    shift = torch.randn(16)
    learner.shift(features, features + shift)
    torch.testing.assert_close(learner.gaussians.means(), means + shift, atol=1e-5, rtol=1e-5)


def test_without_the_shift_old_means_stay_and_with_it_they_move():
    for shifts in (True, False):
        learner = synthetic_learner("ssiat", ssiat_shift=shifts, lr=0.1)
        learn(learner, [0])
        before = learner.gaussians.means()
        learn(learner, [1])
        assert torch.equal(learner.gaussians.means()[:2], before) is not shifts


def test_the_shift_reads_both_features_of_the_same_image():
    learner = synthetic_learner("ssiat", lr=0.1)
    learn(learner, [0])
    before = learner.gaussians.means()
    x = learner.extract("train", 1)[0]
    learner.begin_task(1)
    learner.train(1, Monitor())
    y = learner.extract("train", 1)[0]
    learner.end_task(1, Monitor())
    for old, new in zip(before, learner.gaussians.means(), strict=False):
        weights = [math.exp(-(row - old).square().sum().item() / 32) + 1e-5 for row in x]
        expected = old + sum(w * (b - a) for w, a, b in zip(weights, x, y, strict=True)) / sum(weights)
        torch.testing.assert_close(new, expected, atol=1e-5, rtol=1e-4)


def test_later_tasks_may_have_fewer_epochs():
    counted = []

    class Counting(Monitor):
        def end_epoch(self, task, epoch, *_):
            counted.append((task, epoch))

    learner = synthetic_learner("ssiat", epochs=3, later_epochs=1)
    for task in (0, 1):
        learner.learn_task(task, Counting())
    assert counted == [(0, 0), (0, 1), (0, 2), (1, 0)] and learner.config.epochs == 3


def test_alignment_of_cosine_heads_is_sgd_on_s_cos():
    heads = [CosineHead(4, 2, scale=5.0), CosineHead(4, 3, scale=5.0)]
    for head in heads:
        head.reset(torch.Generator().manual_seed(head.out_features))
    weight = nn.Parameter(torch.cat([head.weight.detach() for head in heads]))
    features, labels = torch.randn(20, 4), torch.arange(20) % 5
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=0.01)
    alignment = Alignment(heads, lr=0.1, momentum=0.9, weight_decay=0.01, tau=None)
    for _ in range(3):
        alignment.step(features, labels)
        loss = F.cross_entropy(5 * F.cosine_similarity(features[:, None], weight[None], dim=2), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    alignment.finish()
    torch.testing.assert_close(torch.cat([head.weight for head in heads]), weight)


def test_two_ways_to_move_the_means_at_once_are_refused():
    with pytest.raises(UserError, match="drift: got 'linear', allowed: 'none' while ssiat_shift"):
        synthetic_learner("ssiat", drift="linear")
    assert synthetic_learner("ssiat", drift="linear", ssiat_shift=False)


def test_its_own_defaults_hold_where_the_config_is_silent():
    config = make_config(model_name="ssiat")
    assert (config.bcb_lrscale, config.ca_ridge, config.ca_start, config.ca_with_logit_norm) == (1.0, 1e-3, "aligned", None)
