"""utils/formulas/class_orders.py: similar classes together, unlike ones together."""

import itertools

import numpy as np
import pytest

from utils.formulas.class_orders import cosines, similar_order, spread_order, within_tasks


@pytest.fixture(scope="module")
def means():
    """Twelve classes in four directions, three of each, shuffled."""
    rng = np.random.default_rng(0)
    return rng.permutation(np.repeat(np.eye(4, 6), 3, axis=0)) + 0.05 * rng.normal(size=(12, 6))


def test_similar_classes_come_together_and_dealt_out_ones_apart(means):
    similarity, sizes = cosines(means), [3, 3, 3, 3]
    similar = similar_order(similarity)
    groups = means[similar].argmax(axis=1).reshape(4, 3)
    assert (groups == groups[:, :1]).all(), "each task has one of the four directions"
    apart = spread_order(similar, sizes)
    assert sorted(apart) == list(range(12))
    assert all(len(set(task)) == 3 for task in means[apart].argmax(axis=1).reshape(4, 3)), "no task has a direction twice"
    assert within_tasks(similarity, similar, sizes) > 0.9 > 0.1 > within_tasks(similarity, apart, sizes)


def test_classes_are_dealt_out_in_proportion_to_the_tasks_sizes():
    dealt = spread_order(np.arange(12), [6, 3, 3])
    tasks = np.split(dealt, [6, 9])
    for task, spacing in zip(tasks, (2, 4, 4), strict=True):
        assert task.tolist() == sorted(task) and max(np.abs(np.diff(task) - spacing)) <= 1


def test_the_similarity_within_tasks_is_the_mean_over_pairs(means):
    similarity, order, sizes = cosines(means), np.arange(12)[::-1], [5, 1, 6]
    pairs = [pair for task in np.split(order, [5, 6]) for pair in itertools.combinations(task, 2)]
    by_hand = np.mean([means[a] @ means[b] / np.linalg.norm(means[a]) / np.linalg.norm(means[b]) for a, b in pairs])
    assert within_tasks(similarity, order, sizes) == pytest.approx(by_hand)
    assert within_tasks(similarity, order, [1] * 12) is None


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_classes_have_one_order(count):
    assert similar_order(np.eye(count)).tolist() == list(range(count))
