"""GDumb's sampler and its fresh start."""

from collections import Counter

import numpy as np
import torch

from models.rehearsal.gdumb import greedy_sampler
from tests.support import learn, synthetic_learner


def counts(memory):
    return sorted(Counter(label for _, label in memory).items())


def test_memory_is_balanced_when_the_stream_is_not():
    stream = [(i, 0) for i in range(50)] + [(100 + i, 1) for i in range(8)] + [(200, 2)]
    memory = greedy_sampler([], stream, 10, np.random.default_rng(0))
    assert counts(memory) == [(0, 4), (1, 5), (2, 1)]  # class 2 has one image only; the first of the largest gave way
    assert len(set(memory)) == 10


def test_new_classes_take_their_share_from_the_stored_ones():
    first = greedy_sampler([], [(i, i % 2) for i in range(40)], 12, np.random.default_rng(0))
    assert counts(first) == [(0, 6), (1, 6)]
    second = greedy_sampler(first, [(100 + i, 2) for i in range(20)], 12, np.random.default_rng(1))
    assert counts(second) == [(0, 4), (1, 4), (2, 4)]
    assert {m for m in second if m[1] < 2} <= set(first)


def test_each_task_starts_from_the_pretrained_weights_and_new_heads():
    learner = synthetic_learner("gdumb")
    start = {k: v.clone() for k, v in learner.net.backbone.state_dict().items()}
    learn(learner, [0])
    assert any(not torch.equal(v, start[k]) for k, v in learner.net.backbone.state_dict().items())
    learner.begin_task(1)
    assert all(torch.equal(v, start[k]) for k, v in learner.net.backbone.state_dict().items())
    assert learner.net.head_sizes == [2, 2] and all(not head.bias.any() for head in learner.net.heads)


def test_training_sees_the_memory_alone():
    learner = synthetic_learner("gdumb")
    learn(learner, [0])
    learner.begin_task(1)
    labels = torch.cat([labels for _, labels in learner.training_batches(1, 0)])
    assert torch.bincount(labels).tolist() == [5, 5, 5, 5]
