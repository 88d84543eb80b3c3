"""SLDC's drift compensation, its loss and its classifier."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.lora.sldc import ClassifierRefinement
from tests.support import learn, synthetic_learner
from utils.errors import UserError
from utils.formulas.drift_maps import MixtureMap
from utils.run.monitor import Monitor

ALPHAS = ("alpha_1", "alpha_2")


def after_one_task(**settings):
    learner = synthetic_learner("sldc", **settings)
    learn(learner, [0])
    return learner


def test_alpha_1_moves_mean_and_covariance_by_the_ridge_solution_on_unit_features():
    learner = after_one_task(sldc_drift="alpha_1")
    before, after = torch.randn(40, 16), torch.randn(40, 16)
    old = learner.gaussians.classes
    means, covariances = [g.mean.double() for g in old], [g.covariance().double() for g in old]
    learner.compensate(before, after, 1)
    x, y = (f.double() / f.double().norm(dim=1, keepdim=True) for f in (before, after))
    inverse = torch.linalg.inv(x.T @ x + 1e-4 * torch.eye(16))
    w = inverse @ (x.T @ y + 1e-4 * torch.eye(16))  # the same, written as a solution that the ridge pulls to the identity
    for g, mean, covariance in zip(learner.gaussians.classes, means, covariances, strict=True):
        torch.testing.assert_close(g.mean.double(), mean @ w, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(g.covariance().double(), w.T @ covariance @ w, atol=1e-4, rtol=1e-3)


def test_alpha_2_begins_at_the_identity_so_that_without_a_step_statistics_stay_up_to_sampling():
    learner = after_one_task(sldc_steps=0, sldc_moment_samples=2000)
    means, covariances = learner.gaussians.means(), [g.covariance() for g in learner.gaussians.classes]
    counts = [g.count for g in learner.gaussians.classes]
    learner.compensate(torch.randn(40, 16), torch.randn(40, 16), 1)
    scale = covariances[0].diagonal().mean().sqrt()
    torch.testing.assert_close(learner.gaussians.means(), means, atol=0.05 * scale.item(), rtol=0)
    for g, covariance in zip(learner.gaussians.classes, covariances, strict=True):
        torch.testing.assert_close(g.covariance(), covariance, atol=0.1 * covariance.abs().max().item(), rtol=0)
    assert [g.count for g in learner.gaussians.classes] == counts


def test_alpha_2_gives_the_moments_of_drawn_and_moved_features():
    learner = after_one_task(sldc_moment_samples=2000)
    mixture = MixtureMap(16, torch.Generator().manual_seed(0))
    with torch.no_grad():
        mixture.mixing.copy_(torch.tensor([-20.0, 20.0, -20.0]))  # A alone
        mixture.linear.copy_(torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1))).Q)
    old = learner.gaussians.classes
    moved = learner.moved_by(mixture, 1)
    for before, after in zip(old, moved.classes, strict=True):
        expected = mixture.linear.detach() @ before.covariance() @ mixture.linear.detach().T  # a rotation keeps all lengths
        torch.testing.assert_close(after.covariance(), expected, atol=0.1 * expected.abs().max().item(), rtol=0)


@pytest.mark.parametrize("alpha", [*ALPHAS, "none"])
def test_old_statistics_move_only_with_a_map(alpha):
    learner = after_one_task(sldc_drift=alpha, lr=0.05)
    before = learner.gaussians.means()
    learn(learner, [1])
    assert torch.equal(learner.gaussians.means()[:2], before) is (alpha == "none")


def test_the_loss_holds_features_and_their_lengths():
    learner = after_one_task(kd=2.0, sldc_norm=0.5, sce_a=0.7, sce_b=0.2)
    learner.begin_task(1)
    images, labels = next(iter(learner.data.batches("train", 1, batch_size=8, augment=False)))
    learner.net.eval()
    before = learner.net.features(images).detach()
    with torch.no_grad():
        for name, p in learner.net.named_parameters():
            if name.endswith("lora_B"):
                p.normal_(std=0.1)
    loss, logits, targets = learner.training_loss(learner.training_module(1), images, labels)
    features = learner.net.features(images)
    log_q = torch.full_like(logits, 1e-4).scatter_(1, targets[:, None], 1.0).log()
    reverse = -(logits.softmax(dim=1) * log_q).sum(dim=1).mean()
    held = (features - before).square().mean() + 0.5 * (features.norm(dim=1) - before.norm(dim=1)).square().mean()
    torch.testing.assert_close(loss, 0.7 * F.cross_entropy(logits, targets) + 0.2 * reverse + 2 * held, atol=1e-5, rtol=1e-4)


def test_holding_features_keeps_the_backbone_closer():
    moved = {}
    for kd in (0.0, 1.0):
        learner = after_one_task(kd=kd, lr=0.01, epochs=20)
        before = learner.extract("test", 0)[0]
        learn(learner, [1])
        moved[kd] = (learner.extract("test", 0)[0] - before).square().mean()
    assert moved[1.0] < moved[0.0]


def test_only_lora_and_the_new_head_train():
    learner = after_one_task()
    learner.begin_task(1)
    before = {name: p.detach().clone() for name, p in learner.net.named_parameters()}
    learner.train(1, Monitor())
    moved = {name for name, p in learner.net.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all(".lora_" in name or name.startswith("heads.1.") for name in moved)


def test_the_classifier_is_refined_by_adam_on_symmetric_cross_entropy():
    torch.manual_seed(0)
    heads = nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 3)])
    own = nn.Linear(4, 5)
    with torch.no_grad():
        own.weight.copy_(torch.cat([h.weight for h in heads]))
        own.bias.copy_(torch.cat([h.bias for h in heads]))
    optimizer, refinement = torch.optim.Adam(own.parameters(), lr=0.01), ClassifierRefinement(heads, lr=0.01, sce_a=0.5, sce_b=0.5)
    features, labels = torch.randn(20, 4), torch.arange(20) % 5
    for _ in range(3):
        refinement.step(features, labels)
        logits = own(features)
        log_q = torch.full_like(logits, 1e-4).scatter_(1, labels[:, None], 1.0).log()
        loss = 0.5 * F.cross_entropy(logits, labels) - 0.5 * (logits.softmax(dim=1) * log_q).sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    refinement.finish()
    torch.testing.assert_close(torch.cat([h.weight for h in heads]), own.weight, atol=1e-5, rtol=1e-4)


def test_rates_title_and_defaults():
    learner = synthetic_learner("sldc", ca_epochs=6)
    c = learner.config
    assert (c.lr, c.bcb_lrscale, c.weight_decay, c.kd, c.ca_lr, c.ca_mean_decay) == (1e-3, 0.1, 3e-5, 1.0, 5e-4, 0.0)
    assert learner.alignment_rate(0) == 5e-4 and learner.alignment_rate(6) == pytest.approx(5e-5)
    assert learner.title_of(c) == "SLDC (alpha 2)"
    with pytest.raises(UserError, match="drift: got 'linear', allowed: 'none' while sldc_drift"):
        synthetic_learner("sldc", drift="linear")
