"""Whether methods differ over several streams: average ranks, the Friedman test and the Nemenyi critical difference.

Source: Demsar, Statistical comparisons of classifiers over multiple data sets, JMLR 7 (2006), section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, sqrt

import numpy as np

ALPHA = 0.05
FEWEST_METHODS = 3                                   # of two the sign test tells as much


@dataclass(frozen=True)
class RankTest:
    """N streams, k methods; the test's figures are None where `left_out` says why there is none."""

    streams: int
    ranks: list[float]                               # (k,) mean over the streams, 1 is best
    chi_square: float | None = None                  # Friedman, with k - 1 degrees of freedom, corrected for ties
    p: float | None = None
    critical_difference: float | None = None         # of two average ranks, Nemenyi at ALPHA
    left_out: str = ""


def rank_test(figures: np.ndarray) -> RankTest:
    """Ranks of k methods on N streams and whether they differ.

    Args:
        figures: (N, k) where higher is better; equal ones share their rank.
    """
    from scipy.stats import friedmanchisquare, rankdata  # takes a second, which most commands need not wait for

    streams, methods = figures.shape
    ranks = [float(rank) for rank in rankdata(-figures, axis=1).mean(axis=0)]  # (N, k) -> (k,)
    level = bool((figures == figures[:, :1]).all())
    left_out = why_left_out(streams, methods) or ("every stream gives all methods the same figure" if level else "")
    if left_out:
        return RankTest(streams, ranks, left_out=left_out)
    chi_square, p = friedmanchisquare(*figures.T)
    return RankTest(streams, ranks, float(chi_square), float(p), critical_difference(streams, methods))


def critical_difference(streams: int, methods: int, alpha: float = ALPHA) -> float:
    """Least difference of two average ranks that is not chance at `alpha`: q sqrt(k (k + 1) / 6 N), q from the studentized range."""
    from scipy.stats import studentized_range

    return float(studentized_range.ppf(1 - alpha, methods, inf)) / sqrt(2) * sqrt(methods * (methods + 1) / (6 * streams))


def why_left_out(streams: int, methods: int) -> str:
    """Why a test of so few would say nothing, whatever the figures are; "" where it can say something."""
    from scipy.stats import chi2

    if methods < FEWEST_METHODS:
        return f"it needs {FEWEST_METHODS} methods that every stream has, here are {methods}"
    least = float(chi2.sf(streams * (methods - 1), methods - 1))  # all streams agree on the order
    if least > ALPHA:
        return f"with {methods} methods on {streams} streams even the same order in every stream has p = {least:.2g}"
    apart = critical_difference(streams, methods)
    if apart >= methods - 1:
        return (f"with {methods} methods on {streams} streams two methods would have to differ by {apart:.2f} average ranks, and "
                f"{methods - 1} is the most there can be")
    return ""
