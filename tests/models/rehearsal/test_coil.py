"""COIL's transport of classifiers, on cases solvable by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from models.rehearsal.coil import cosines, transport, transport_weights, weights
from tests.support import learn, synthetic_learner

UNIT = torch.eye(2)


@pytest.mark.parametrize("regularisation", [0.464, 1.0])
def test_transport_between_two_and_two_classes_is_the_plan_found_by_hand(regularisation):
    # Means of old and new classes coincide: cost 0 on the diagonal, sqrt(2) off it. By symmetry the plan is
    # 1/2 [[p, 1 - p], [1 - p, p]] with p / (1 - p) = exp(sqrt(2) / reg), so a new class gets p of its twin's weights.
    p = 1 / (1 + math.exp(-math.sqrt(2) / regularisation))
    by_hand = torch.tensor([[p, 1 - p], [1 - p, p]])
    by_hand = by_hand / by_hand.norm(dim=1, keepdim=True)  # weights of length 1 stay of mean length 1
    torch.testing.assert_close(transport(UNIT, UNIT, UNIT, regularisation), by_hand)


def test_with_little_entropy_every_class_goes_to_its_nearest_twin():
    swapped = UNIT.flip(0)
    torch.testing.assert_close(transport(3 * UNIT, UNIT, swapped, 0.01), 3 * swapped)


def test_one_source_gives_all_targets_its_own_direction_and_mean_length():
    source, means = torch.tensor([[0.0, 4.0]]), torch.randn(3, 2)
    torch.testing.assert_close(transport(source, UNIT[:1], means, 0.464), torch.tensor([[0.0, 4.0]] * 3))


def test_large_costs_do_not_underflow():
    assert torch.isfinite(transport(UNIT, 1e4 * UNIT, UNIT, 0.464)).all()


def test_prospective_loss_fades_in_two_epochs_and_the_retrospective_one_grows_to_the_end():
    assert transport_weights(0, 10) == (1.0, 0.0)
    assert transport_weights(1, 10) == (0.75, 0.1**2)
    assert transport_weights(5, 10) == (0.0, 0.25)


def test_a_new_head_starts_from_the_transported_old_ones():
    learner = synthetic_learner("coil")
    learn(learner, [0])
    old = weights(learner.net.heads)
    old_means, new_means = learner.class_means(1)
    learner.begin_task(1)
    torch.testing.assert_close(learner.net.heads[1].weight.detach(), transport(old, old_means, new_means, 0.464))
    torch.testing.assert_close(learner.net.heads[0].weight.detach(), old)


def test_transported_old_classifier_pulls_the_features_not_the_new_head():
    torch.manual_seed(0)
    features, classifier = torch.randn(3, 2, requires_grad=True), transport(UNIT, UNIT, UNIT, 0.464)
    cosines(features, classifier).sum().backward()
    assert features.grad.abs().sum() > 0 and not classifier.requires_grad


def test_loss_is_the_papers_four_terms_written_out():
    learner = synthetic_learner("coil", epochs=4)
    learn(learner, [0])
    learner.begin_task(1)
    learner.epoch = 1  # of 4: both transports count
    images, labels = next(iter(learner.training_batches(1, 1)))
    module = learner.training_module(1)
    loss, logits, _ = learner.training_loss(module, images, labels)
    features, old = learner.net.features(images), learner.old_logits(images)

    def soft(new, target):  # at temperature 2
        return -((target / 2).softmax(dim=1) * (new / 2).log_softmax(dim=1)).sum(dim=1).mean()

    expected = (0.5 * soft(logits[:, :2], old) + 0.5 * F.cross_entropy(logits, labels)  # 2 of 4 classes are old
                + 1e-3 * 0.75 * soft(logits[:, 2:], F.cosine_similarity(features[:, None], learner.to_new, dim=2))
                + 1e-3 * (1 / 4) ** 2 * soft(F.cosine_similarity(features[:, None], learner.to_old, dim=2), old))
    torch.testing.assert_close(loss, expected)
