"""BiC's bias correction."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp
from torch.nn import functional as F

from models.rehearsal.bic import correct, fit_correction
from tests.support import learn, synthetic_learner
from utils.run.monitor import Monitor


def biased_logits():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat(10)
    logits = torch.randn(40, 4, generator=generator) + 1.5 * torch.nn.functional.one_hot(labels, 4)
    logits[:, 2:] = 2.0 * logits[:, 2:] + 1.0  # new classes shout
    return logits, labels


def test_correction_changes_new_classes_only():
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    assert correct(logits, 1, 0.5, 1.0).tolist() == [[1.0, 2.0, 2.5]]


def test_alpha_and_beta_minimise_the_validation_loss_as_a_derivative_free_search_finds_it():
    logits, labels = biased_logits()
    z, y = logits.double().numpy(), labels.numpy()

    def loss(values):
        q = np.concatenate([z[:, :2], values[0] * z[:, 2:] + values[1]], axis=1)
        return (logsumexp(q, axis=1) - q[np.arange(40), y]).mean() + 0.1 * values[1] ** 2 / 2  # alpha is free

    best = minimize(loss, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
    np.testing.assert_allclose(fit_correction(logits, labels, 2), best.x, atol=1e-5)


def test_correction_undoes_a_bias_towards_new_classes():
    logits, labels = biased_logits()
    alpha, beta = fit_correction(logits, labels, 2)
    assert alpha < 0.8 and beta < 0
    share_before = (logits.argmax(dim=1) >= 2).float().mean()
    share_after = (correct(logits, 2, alpha, beta).argmax(dim=1) >= 2).float().mean()
    assert abs(share_after - 0.5) < abs(share_before - 0.5)


def test_correction_stays_finite_when_validation_is_separable():
    logits, labels = torch.tensor([[9.0, -9.0], [-9.0, 9.0]]), torch.tensor([0, 1])
    assert all(np.isfinite(fit_correction(logits, labels, 1)))


def trained_images(learner, task):
    """Positions of all images that an epoch of the task trains on."""
    return set(learner.training_indices(task).tolist())


@pytest.mark.parametrize("memory", [{"memory_size": 60}, {"memory_size": 0, "memory_per_class": 10, "fixed_memory": True}])
def test_a_validation_image_is_trained_on_in_no_task(memory):
    learner = synthetic_learner("bic", **memory, bic_val_fraction=0.2)
    trained, validated, held_out = set(), set(), []
    for task in range(3):
        learner.begin_task(task)
        held_out.append(set(learner.validation.tolist()))
        trained |= trained_images(learner, task)
        validated |= held_out[-1] if task > 0 else set()
        learner.end_task(task, Monitor())
    assert validated and held_out[0] and not validated & trained
    assert {image for image in held_out[1] if learner.data.labels_of("train", np.array([image]))[0] < 2} <= held_out[0]


def test_each_task_validates_on_as_many_images_of_old_classes_as_of_new_ones():
    learner = synthetic_learner("bic", memory_size=60, bic_val_fraction=0.2)
    learn(learner, [0])
    learner.begin_task(1)
    assert np.bincount(learner.data.labels_of("train", learner.validation)).tolist() == [6] * 4  # a fifth of 60 / 2
    learner.end_task(1, Monitor())
    learner.begin_task(2)
    assert np.bincount(learner.data.labels_of("train", learner.validation)).tolist() == [3] * 6  # a fifth of 60 / 4


def test_stored_and_held_out_images_together_are_the_classs_share_of_the_memory():
    learner = synthetic_learner("bic", memory_size=24, bic_val_fraction=0.25)
    learn(learner, [0, 1])
    kept = np.concatenate([learner.memory, learner.validation])
    assert np.bincount(learner.data.labels_of("train", kept)).tolist() == [6] * 4 and len(set(kept.tolist())) == len(kept)
    assert learner.memory_bytes()["images"] == learner.data.images_bytes(kept)


def test_a_class_of_one_image_is_trained_on():
    learner = synthetic_learner("bic", memory_size=60, bic_val_fraction=0.5, dataset={
        "name": "tiny", "layout": "synthetic", "num_classes": 4, "image_size": 16, "train_per_class": 1, "test_per_class": 1})
    learn(learner, [0, 1])
    assert len(learner.validation) == 0 and learner.correction == (1.0, 0.0)


def test_the_held_out_images_survive_saving_and_loading():
    learner, other = (synthetic_learner("bic", memory_size=60, bic_val_fraction=0.2) for _ in range(2))
    learn(learner, [0])
    other.load_network_state(learner.network_state(), 0)
    other.load_extra_state(learner.extra_state())
    for each in (learner, other):
        each.begin_task(1)
    assert learner.validation.tolist() == other.validation.tolist() and trained_images(learner, 1) == trained_images(other, 1)


def test_distillation_sees_the_corrected_old_network():
    learner = synthetic_learner("bic")
    learn(learner, [0, 1])
    learner.correction = (0.5, -2.0)
    images = next(iter(learner.training_batches(1, 0)))[0]
    raw = learner.net(images).detach()
    learner.begin_task(2)
    torch.testing.assert_close(learner.old_logits(images), torch.cat([raw[:, :2], 0.5 * raw[:, 2:] - 2.0], dim=1))
    assert learner.correction == (1.0, 0.0)


def test_loss_of_stage_1_weighs_distillation_with_the_share_of_old_classes():
    learner = synthetic_learner("bic")
    learn(learner, [0, 1])
    learner.begin_task(2)
    images, labels = next(iter(learner.training_batches(2, 0)))
    loss, logits, _ = learner.training_loss(learner.net, images, labels)
    old = (learner.old_logits(images) / 2).softmax(dim=1)
    distilled = -(old * (logits[:, :4] / 2).log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(loss, 4 / 6 * distilled + 2 / 6 * F.cross_entropy(logits, labels))
