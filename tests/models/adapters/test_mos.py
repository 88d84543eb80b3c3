"""MOS: merging after each step, the loss that keeps features apart, the self-refined prediction, each written out."""

import math

import pytest
import torch

from tests.models.test_first_session import images
from tests.support import learn, synthetic_learner

SMALL = {"adapter_width": 4, "lr": 0.1, "epochs": 2, "ca_epochs": 2, "ca_samples": 16, "ca_lr": 0.05}


@torch.enable_grad()
def mos(tasks=3, **settings):
    learner = synthetic_learner("mos", **{**SMALL, **settings})
    learn(learner, range(tasks))
    learner.net.eval()
    return learner


def test_after_a_step_the_adapter_is_nine_tenths_its_own_and_a_tenth_the_mean_of_the_earlier_ones():
    one_step = {"epochs": 1, "batch_size": 24, "ca_epochs": 0}
    plain, merged = mos(tasks=2, **one_step, mos_merge=0.0), mos(tasks=2, **one_step, mos_merge=0.1)
    earlier = merged.adapters.state(0)
    for name, tensor in plain.adapters.state(1).items():
        torch.testing.assert_close(merged.adapters.state(1)[name], 0.9 * tensor + 0.1 * earlier[name], rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(tensor, plain.adapters.state(0)[name]) for name, tensor in plain.adapters.state(1).items())


def test_the_mean_is_over_all_earlier_adapters():
    learner = mos(tasks=2)
    first, second = ({name: tensor.clone() for name, tensor in learner.adapters.state(t).items()} for t in range(2))
    learner.begin_task(2)
    learner.make_optimizer(2).step()  # without gradients nothing but the merging moves; adapter 2 starts as adapter 1
    for name, tensor in learner.adapters.state(2).items():
        torch.testing.assert_close(tensor, 0.9 * second[name] + 0.1 * (first[name] + second[name]) / 2, rtol=1e-4, atol=1e-6)


def test_the_loss_adds_the_cross_entropy_of_means_and_features_against_the_identity():
    learner = mos(tasks=1)
    learner.begin_task(1)
    x, labels = next(iter(learner.data.batches("train", 1, batch_size=4, augment=False)))
    whole, logits, targets = learner.training_loss(learner.training_module(1), x, labels)
    assert logits.shape == (4, 2)
    plain = torch.nn.functional.cross_entropy(logits, targets)
    rows = [*learner.gaussians.means(), *learner.net.backbone(x).detach()]
    by_hand = 0.0
    for i, row in enumerate(rows):
        similar = [float(row @ other) / 0.8 for other in rows]
        top = max(similar)
        by_hand += top + math.log(sum(math.exp(s - top) for s in similar)) - similar[i]
    assert (whole - plain).item() == pytest.approx(0.1 * by_hand / len(rows), rel=1e-3, abs=1e-4)


@torch.no_grad()
def test_the_prediction_follows_class_task_adapter_until_the_task_stays():
    learner = mos()
    x = images(learner)
    found = learner.scores(learner.features(x))
    learner.adapters.select(None)
    pretrained = learner.net.backbone(x)
    logits = []
    for t in range(3):
        learner.adapters.select(t)
        logits.append(learner.net.classify(learner.net.backbone(x)))
    for n in range(len(x)):
        cosines = torch.stack([pretrained[n] @ mean / (pretrained[n].norm() * mean.norm()) for mean in learner.class_means])
        task, asked = int(cosines.argmax()) // 2, 1
        while (following := int(logits[task][n].argmax()) // 2) != task and asked < 4:
            task, asked = following, asked + 1
        torch.testing.assert_close(found[n], logits[task][n].softmax(dim=0) + (3 * cosines).softmax(dim=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(learner.probabilities(learner.features(x)).sum(dim=1), torch.ones(len(x)))


@torch.no_grad()
def test_one_adapter_gives_its_own_logits():
    learner = mos(tasks=1)
    features = learner.features(images(learner))
    pretrained, adapted = features[:, :16], features[:, 16:]
    cosines = torch.nn.functional.cosine_similarity(pretrained[:, None], learner.class_means[None], dim=2)
    torch.testing.assert_close(learner.scores(features), learner.net.heads[0](adapted).softmax(dim=1) + cosines.softmax(dim=1))


@torch.no_grad()
def test_statistics_are_of_the_own_tasks_adapter_and_class_means_of_the_pretrained_backbone():
    learner = mos(tasks=2, ca_epochs=0)
    for task in range(2):
        x, labels = next(iter(learner.data.batches("train", task, batch_size=64, augment=False)))
        learner.adapters.select(task)
        adapted = learner.net.backbone(x)
        learner.adapters.select(None)
        pretrained = learner.net.backbone(x)
        for c in (2 * task, 2 * task + 1):
            torch.testing.assert_close(learner.gaussians[c].mean, adapted[labels == c].mean(dim=0), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(learner.gaussians[c].covariance(), adapted[labels == c].T.cov(), rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(learner.class_means[c], pretrained[labels == c].mean(dim=0), rtol=1e-4, atol=1e-5)
    assert learner.memory_bytes()["statistics"] == learner.planned_statistics(4, 12)


def test_the_head_learns_at_a_tenth_of_the_rate():
    learner = mos(tasks=1)
    assert {group["name"]: round(group["lr"], 9) for group in learner.parameter_groups(0)} == {"adapter": 0.1, "head": 0.01}


@torch.no_grad()
def test_without_its_parts_the_result_is_another():
    """Wrong-way checks: no merging, no loss on the features, no alignment."""
    whole = mos(tasks=2)
    scores = whole.scores(whole.features(images(whole)))
    for off in ({"mos_merge": 0.0}, {"mos_orthogonality": 0.0}, {"ca_epochs": 0}):
        other = mos(tasks=2, **off)
        assert not torch.allclose(other.scores(other.features(images(other))), scores, atol=1e-5), off
