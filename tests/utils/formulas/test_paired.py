"""Differences seed by seed."""

from __future__ import annotations

import pytest

from utils.formulas.paired import paired_difference


def test_the_interval_lies_around_the_mean_and_is_the_same_each_time() -> None:
    first, second = (paired_difference([3.0, 5.0, 4.0, 6.0], [1.0, 2.0, 3.0, 2.0]) for _ in range(2))
    assert first == second and first.mean == pytest.approx(2.5) and 1.0 <= first.low < 2.5 < first.high <= 4.0 and first.stands_out


def test_the_sign_test_leaves_out_pairs_without_a_difference() -> None:
    assert paired_difference([1, 1, 1, 5], [0, 0, 0, 5]).sign_test == pytest.approx(0.25)
    assert paired_difference([1, 2], [1, 2]).sign_test == 1.0


def test_one_pair_has_no_interval_and_none_has_nothing() -> None:
    assert paired_difference([2.0], [1.0]).low is None and not paired_difference([2.0], [1.0]).stands_out
    assert paired_difference([], []).mean is None


def test_equal_figures_do_not_stand_out() -> None:
    assert not paired_difference([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]).stands_out
