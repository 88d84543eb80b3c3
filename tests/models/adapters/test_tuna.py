"""TUNA: the universal adapter, its loss, the surest adapter and alignment of cosine heads, each written out."""

import math
from functools import partial

import pytest
import torch

from convs.heads import cosine_head, linear_head
from models.slca.alignment import Alignment, FusedHeads
from tests.models.test_first_session import images
from tests.support import learn, synthetic_learner
from utils.formulas.passes import tuna_probabilities

SMALL = {"adapter_width": 4, "lr": 0.2, "epochs": 2, "ca_epochs": 2, "ca_samples": 16, "ca_lr": 0.05}


@torch.enable_grad()
def tuna(tasks=3, **settings):
    learner = synthetic_learner("tuna", **{**SMALL, **settings})
    learn(learner, range(tasks))
    learner.net.eval()
    return learner


def test_the_universal_adapter_has_the_sign_of_the_mean_and_the_largest_magnitude_of_that_sign():
    learner = tuna()
    states = [learner.adapters.state(t) for t in range(3)]
    for name, universal in learner.adapters.state("universal").items():
        for weights, found in zip(zip(*(state[name].flatten().tolist() for state in states), strict=True), universal.flatten().tolist(),
                                  strict=True):
            mean = sum(weights)
            agreeing = [abs(w) for w in weights if w * mean > 0]
            assert found == pytest.approx(math.copysign(max(agreeing, default=0.0), mean), abs=1e-6)


def test_the_loss_is_cosface_on_the_own_classes():
    learner = synthetic_learner("tuna", **SMALL, tuna_margin=0.3)
    learn(learner, [0])
    learner.begin_task(1)
    x, labels = next(iter(learner.data.batches("train", 1, batch_size=8, augment=False)))
    learner.net.eval()
    loss, logits, targets = learner.training_loss(learner.training_module(1), x, labels)
    features, weight = learner.net.backbone(x).detach(), learner.net.heads[1].weight.detach()
    by_hand = 0.0
    for row, label in zip(features, (labels - 2).tolist(), strict=True):
        cosines = [float(row @ w / (row.norm() * w.norm())) for w in weight]
        scaled = [20 * (cosine - 0.3 * (c == label)) for c, cosine in enumerate(cosines)]
        by_hand += math.log(sum(math.exp(v) for v in scaled)) - scaled[label]
    assert loss.item() == pytest.approx(by_hand / len(x), rel=1e-4)
    assert logits.shape == (8, 2) and targets.min() >= 0 and learner.net.heads[1].bias is None


@torch.no_grad()
def test_scores_are_the_softmax_of_least_entropy_plus_the_universal_one():
    learner = tuna()
    x = images(learner)
    found = learner.scores(learner.features(x))
    softmaxes = {}
    for name in (0, 1, 2, "universal"):
        learner.adapters.select(name)
        softmaxes[name] = learner.net.classify(learner.net.backbone(x)).softmax(dim=1)
    for n in range(len(x)):
        entropies = [-sum(p * math.log(p) for p in softmaxes[t][n].tolist()) for t in range(3)]
        surest = entropies.index(min(entropies))
        torch.testing.assert_close(found[n], softmaxes[surest][n] + softmaxes["universal"][n], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(learner.probabilities(learner.features(x)).sum(dim=1), torch.ones(len(x)))


def test_an_adapter_goes_on_from_the_one_before():
    learner = tuna(tasks=1)
    learner.begin_task(1)
    before, new = learner.adapters.state(0), learner.adapters.state(1)
    assert all(torch.equal(before[name], new[name]) for name in before)
    moving = {name for name, p in learner.net.backbone.model.named_parameters() if p.requires_grad}
    assert moving and all(".adapters.1." in name for name in moving)


@torch.no_grad()
def test_without_its_universal_adapter_or_alignment_the_result_is_another():
    """Wrong-way checks."""
    learner, unaligned = tuna(), tuna(ca_epochs=0)
    features = learner.features(images(learner))
    logits = learner.logits(learner.split_passes(features))
    assert not torch.allclose(learner.scores(features), tuna_probabilities(logits[:, :-1], logits[:, 2]), atol=1e-4)
    assert not torch.allclose(learner.net.heads[0].weight, unaligned.net.heads[0].weight, atol=1e-4)
    assert all(head.scale == 20 for head in learner.net.heads)
    for name, tensor in unaligned.adapters.state(0).items():
        assert torch.equal(tensor, learner.adapters.state(0)[name])  # the first task is not aligned


@pytest.mark.parametrize("factory", [partial(linear_head, bias=False), partial(cosine_head, scale=3.0, learned=True), linear_head])
def test_alignment_is_sgd_on_the_heads_logits_whatever_their_kind(factory):
    heads = torch.nn.ModuleList(factory(5, 2, torch.Generator().manual_seed(t)) for t in range(2))
    features, labels = torch.randn(12, 5), torch.arange(12) % 4
    logits = torch.cat([head(features) for head in heads], dim=1)
    torch.testing.assert_close(FusedHeads.of(heads).logits(features), logits)
    gradients = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, labels), [head.weight for head in heads])
    expected = [head.weight.detach() - 0.1 * g for head, g in zip(heads, gradients, strict=True)]
    alignment = Alignment(heads, lr=0.1, momentum=0.0, weight_decay=0.0, tau=None)
    alignment.step(features, labels)
    alignment.finish()
    for head, weight in zip(heads, expected, strict=True):
        torch.testing.assert_close(head.weight.detach(), weight)


def test_heads_of_different_kinds_are_not_aligned_together():
    with pytest.raises(AssertionError, match="one kind"):
        FusedHeads.of([linear_head(5, 2), cosine_head(5, 2)])
