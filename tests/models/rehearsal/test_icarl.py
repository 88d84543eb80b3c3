"""iCaRL's loss and its classifier."""

import numpy as np
import torch

from models.rehearsal.icarl import icarl_loss
from tests.support import learn, synthetic_learner


def test_loss_is_the_papers_sum_over_classes_written_out():
    torch.manual_seed(0)
    logits, old_logits, labels = torch.randn(4, 5), torch.randn(4, 3), torch.tensor([3, 4, 0, 3])
    g = 1 / (1 + np.exp(-logits.numpy().astype(float)))
    q_old = 1 / (1 + np.exp(-old_logits.numpy().astype(float)))
    total = 0.0
    for i in range(4):
        for y in range(5):
            q = q_old[i, y] if y < 3 else float(labels[i] == y)
            total -= q * np.log(g[i, y]) + (1 - q) * np.log(1 - g[i, y])
    np.testing.assert_allclose(icarl_loss(logits, labels, old_logits).item(), total / 4, rtol=1e-5)


def test_loss_of_the_first_task_is_plain_binary_cross_entropy():
    logits, labels = torch.tensor([[2.0, -1.0]]), torch.tensor([0])
    expected = np.log1p(np.exp(-2.0)) + np.log1p(np.exp(-1.0))
    np.testing.assert_allclose(icarl_loss(logits, labels, None).item(), expected, rtol=1e-6)


def test_a_class_without_images_never_wins():
    learner = synthetic_learner("icarl")
    learner.class_means = torch.tensor([[0.0] * 16, [-1.0] + [0.0] * 15])
    opposite = torch.tensor([[1.0] + [0.0] * 15])  # nearer to the origin than to the other class's mean
    assert learner.scores(opposite).argmax(dim=1).tolist() == [1]


def test_the_nearest_mean_by_angle_wins_whatever_the_feature_s_length():
    learner = synthetic_learner("icarl")
    learn(learner, [0])
    features, labels = learner.extract_images(learner.memory)
    unit = features / features.norm(dim=1, keepdim=True)
    means = torch.stack([unit[labels == c].mean(dim=0) for c in range(2)])
    cosines = unit @ (means / means.norm(dim=1, keepdim=True)).T
    assert torch.equal(learner.scores(7 * features).argmax(dim=1), cosines.argmax(dim=1))
