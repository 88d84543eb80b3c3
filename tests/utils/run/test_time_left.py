"""The expected time of the rest of a run."""

from __future__ import annotations

import pytest

from utils.run.time_left import seconds_left


def test_training_costs_by_new_classes_and_evaluation_by_all_classes_seen() -> None:
    done = [{"train": 10.0, "evaluation": 1.0}, {"train": 10.0, "evaluation": 2.0}]
    assert seconds_left(done, [2, 2, 4], seeds=0) == pytest.approx(5.0 * 4 + 0.5 * 8)


def test_the_other_seeds_cost_a_whole_seed_each_without_what_the_first_task_leaves_out() -> None:
    done = [{"train": 4.0, "alignment": 0.0}, {"train": 4.0, "alignment": 2.0}]
    assert seconds_left(done, [1, 1], seeds=2) == pytest.approx(2 * (8 + 2))


def test_nothing_is_left_of_the_last_task_of_the_last_seed() -> None:
    assert seconds_left([{"train": 1.0}], [5], seeds=0) == 0
