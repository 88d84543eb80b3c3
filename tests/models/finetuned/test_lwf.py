"""LwF's distillation of each old task."""

import numpy as np
import pytest
import torch

from models.finetuned.lwf import old_tasks_loss
from tests.support import learn, synthetic_learner


def test_loss_is_the_papers_modified_cross_entropy_per_task_written_out():
    torch.manual_seed(0)
    new, old, total = torch.randn(3, 5), torch.randn(3, 5), 0.0
    for i in range(3):
        for classes in ([0, 1], [2, 3, 4]):  # y' = y^(1/T) / sum y^(1/T) with y = softmax of the task's logits
            y_old = np.exp(old[i, classes].double().numpy())
            y_new = np.exp(new[i, classes].double().numpy())
            y_old, y_new = (y / y.sum() for y in (y_old, y_new))
            y_old, y_new = (y**0.5 / (y**0.5).sum() for y in (y_old, y_new))
            total -= (y_old * np.log(y_new)).sum()
    np.testing.assert_allclose(old_tasks_loss(new, old, [2, 3], 2.0).item(), total / 3, rtol=1e-6)


def test_without_distillation_only_the_new_tasks_logits_matter():
    learner = synthetic_learner("lwf", lwf_lambda=0.0)
    learn(learner, [0])
    learner.begin_task(1)
    images, labels = next(iter(learner.training_batches(1, 0)))
    loss, logits, targets = learner.training_loss(learner.net, images, labels)
    assert logits.shape[1] == 2 and targets.tolist() == (labels - 2).tolist()
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(learner.net(images)[:, 2:], labels - 2))


def test_the_old_network_stays_as_the_previous_task_left_it():
    learner = synthetic_learner("lwf")
    learn(learner, [0])
    images = next(iter(learner.training_batches(0, 0)))[0]
    before = learner.net(images).detach()
    learn(learner, [1])
    torch.testing.assert_close(learner.old_logits(images), before)
    assert not torch.allclose(learner.net(images)[:, :2], before)


@pytest.mark.parametrize("method", ["lwf", "icarl"])
def test_the_old_network_counts_as_memory_kept(method):
    learner = synthetic_learner(method)
    learn(learner, [0])
    alone = learner.memory_bytes()["parameters"]
    learn(learner, [1])
    head = (2 * (16 + 1) + 1) * 4  # two classes of 16 weights and a bias, and the scale, float32
    assert learner.memory_bytes()["parameters"] == (alone + head) + alone  # the network with two heads, the old one with one


def test_of_a_frozen_old_network_only_the_heads_count():
    learner = synthetic_learner("lwf", bcb_lrscale=0.0)
    learn(learner, [0, 1])
    assert learner.memory_bytes()["parameters"] == sum(t.nbytes for t in learner.network_state().values()) + (2 * (16 + 1) + 1) * 4
