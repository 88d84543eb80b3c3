"""Average ranks, the Friedman test and the critical difference against Demsar (2006) and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import friedmanchisquare

from utils.formulas.ranks import critical_difference, rank_test, why_left_out

# Demsar 2006, table 5(a): q at 0.05 for the Nemenyi test.
Q = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}

@pytest.mark.parametrize(("methods", "q"), Q.items())
def test_the_critical_difference_has_the_published_factor(methods: int, q: float) -> None:
    assert critical_difference(14, methods) == pytest.approx(q * (methods * (methods + 1) / (6 * 14)) ** 0.5, abs=1e-3)


def test_the_friedman_test_is_the_papers_equation_and_scipys_on_the_ranks() -> None:
    figures = np.random.default_rng(0).normal(size=(14, 4)) + [0, 1, 0.2, 0.6]
    test = rank_test(figures)
    order = np.argsort(np.argsort(-figures, axis=1), axis=1) + 1  # (14, 4)
    assert test.ranks == pytest.approx(list(order.mean(axis=0)))
    assert test.chi_square == pytest.approx(12 * 14 / (4 * 5) * (sum(rank**2 for rank in test.ranks) - 4 * 5**2 / 4))  # equation 8
    assert (test.chi_square, test.p) == pytest.approx(tuple(friedmanchisquare(*figures.T)))
    assert test.critical_difference == pytest.approx(1.25, abs=5e-3)  # the paper's example: four methods, 14 data sets


def test_equal_figures_share_their_rank() -> None:
    assert rank_test(np.array([[3, 1, 1, 0], [3, 2, 1, 0], [2, 2, 1, 0]], dtype=float)).ranks == pytest.approx([3.5 / 3, 6 / 3, 8.5 / 3, 4])


@pytest.mark.parametrize(("streams", "methods", "reason"), [
    (5, 2, "it needs 3 methods"), (2, 5, "has p ="), (1, 30, "has p ="), (2, 20, "differ by 20.97 average ranks, and 19 is")])
def test_too_few_streams_or_methods_for_a_difference_to_show_are_told(streams: int, methods: int, reason: str) -> None:
    assert reason in why_left_out(streams, methods)
    test = rank_test(np.arange(streams * methods, dtype=float).reshape(streams, methods))
    assert test.chi_square is None and test.critical_difference is None and test.left_out
    assert test.ranks == [float(rank) for rank in range(methods, 0, -1)]


def test_methods_that_are_level_everywhere_are_not_tested() -> None:
    assert "the same figure" in rank_test(np.ones((4, 5))).left_out


def test_methods_with_equal_average_ranks_and_unlike_figures_are_tested() -> None:
    test = rank_test(np.array([[1.0, 2.0, 3.0], [2.0, 3.0, 1.0], [3.0, 1.0, 2.0]]))  # each is first, second and third once
    assert (test.left_out, test.ranks, test.chi_square, test.p) == ("", [2.0, 2.0, 2.0], pytest.approx(0.0), pytest.approx(1.0))
