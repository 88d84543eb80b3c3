"""Average ranks, the Friedman test and the critical difference against Demsar (2006) and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import friedmanchisquare

from utils.formulas.ranks import critical_difference, rank_test, why_left_out

# Demsar 2006, table 5(a): q at 0.05 for the Nemenyi test.
Q = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}
# Table 6: accuracy (AUC) of four methods on 14 data sets.
AUC = np.array([
    [.763, .768, .771, .798], [.599, .591, .590, .569], [.954, .971, .968, .967], [.628, .661, .654, .657], [.882, .888, .886, .898],
    [.936, .931, .916, .931], [.661, .668, .609, .685], [.583, .583, .563, .625], [.775, .838, .866, .875], [1, 1, 1, 1],
    [.940, .962, .965, .962], [.619, .666, .614, .669], [.972, .981, .975, .975], [.957, .978, .946, .970]])


@pytest.mark.parametrize(("methods", "q"), Q.items())
def test_the_critical_difference_has_the_published_factor(methods: int, q: float) -> None:
    assert critical_difference(14, methods) == pytest.approx(q * (methods * (methods + 1) / (6 * 14)) ** 0.5, abs=1e-3)


def test_ranks_and_the_friedman_test_are_those_of_the_worked_example_and_of_scipy() -> None:
    test = rank_test(AUC)
    assert test.ranks == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    by_hand = 12 * 14 / (4 * 5) * (sum(rank**2 for rank in test.ranks) - 4 * 5**2 / 4)  # equation 8, without ties' correction
    assert by_hand == pytest.approx(9.28, abs=5e-3) and test.chi_square >= by_hand
    assert (test.chi_square, test.p) == pytest.approx(tuple(friedmanchisquare(*AUC.T)))
    assert test.critical_difference == pytest.approx(1.25, abs=5e-3)


@pytest.mark.parametrize(("streams", "methods", "reason"), [
    (5, 2, "it needs 3 methods"), (2, 5, "has p ="), (1, 30, "has p ="), (2, 20, "20.96 average ranks")])
def test_too_few_streams_or_methods_for_a_difference_to_show_are_told(streams: int, methods: int, reason: str) -> None:
    assert reason in why_left_out(streams, methods)
    test = rank_test(np.arange(streams * methods, dtype=float).reshape(streams, methods))
    assert test.chi_square is None and test.critical_difference is None and test.left_out
    assert test.ranks == [float(rank) for rank in range(methods, 0, -1)]


def test_methods_that_are_level_everywhere_are_not_tested() -> None:
    assert "the same figure" in rank_test(np.ones((4, 5))).left_out
