"""Whole tasks with worker processes: they read every image, none in vain, and what is learned is the same."""

import multiprocessing
import os

import pytest
import torch

from tests.support import learn, synthetic_learner
from utils.images.loader import BatchMaker


@pytest.mark.parametrize("method", ["slca", "derpp", "gem", "coil"])
def test_workers_make_every_batch_once_and_nothing_else_changes(method, monkeypatch):
    plain_getitem, made, here = BatchMaker.__getitem__, multiprocessing.get_context("fork").Value("i", 0), multiprocessing.Value("i", 0)
    main_process = os.getpid()

    def counted(self, item):
        if item is not None:
            for count in [made] + [here] * (os.getpid() == main_process):
                with count.get_lock():
                    count.value += 1
        return plain_getitem(self, item)
    monkeypatch.setattr(BatchMaker, "__getitem__", counted)
    found = []
    for num_workers in (0, 2):
        made.value = here.value = 0
        learner = synthetic_learner(method, epochs=2, num_workers=num_workers)
        learn(learner, [0, 1])
        found.append((learner.network_state(), learner.extra_state(), learner.evaluate(1), made.value))
        assert here.value == (0 if num_workers else made.value)
    (weights, state, evaluation, count), (same_weights, same_state, same_evaluation, same_count) = found
    assert count == same_count > 0 and evaluation == same_evaluation
    for ours, theirs in ((weights, same_weights), (state, same_state)):
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("method", ["slca", "gem", "replay", "finetune"])
def test_the_next_epochs_first_batches_are_made_while_an_epoch_ends(method):
    learner = synthetic_learner(method, epochs=2, num_workers=2)
    learn(learner, [0])
    learner.begin_task(1)
    plan = learner.data._pool._plan
    for batch in learner.training_batches(1, 0):
        last = batch
    expected = plan.expected
    assert expected is not None and expected.given == min(plan.limit, len(expected.items)), "not more than may be ahead"
    learner.extract("test", 0)  # a pass in between
    epoch = iter(learner.training_batches(1, 1))
    next(epoch)
    assert plan.open == [expected] and len(last) == 2


def test_der_plans_no_epoch_ahead_because_its_reservoir_changes():
    learner = synthetic_learner("derpp", epochs=2, num_workers=1)
    learn(learner, [0])
    learner.begin_task(1)
    for _ in learner.training_batches(1, 0):
        pass
    assert learner.data._pool._plan.expected is None
