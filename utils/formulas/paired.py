"""Whether two methods differ: their difference seed by seed, with a bootstrap interval and a sign test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 9999
CONFIDENCE = 0.95


@dataclass(frozen=True)
class PairedDifference:
    """Mean of one method's figures less another's over the seeds that both have; None where there are too few."""

    pairs: int
    mean: float | None
    low: float | None               # of the bootstrap interval, from two pairs on
    high: float | None
    sign_test: float | None         # two-sided p; pairs without a difference are left out

    @property
    def stands_out(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> PairedDifference:
    """`ours` less `theirs`, (S,) each, in the same order of seeds. The interval is the percentile bootstrap's over the seeds
    (Efron and Tibshirani 1993, chapter 13), always with the same resamples.
    """
    differences = np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)
    if not differences.size:
        return PairedDifference(0, None, None, None, None)
    from scipy.stats import binomtest, bootstrap  # takes a second, which most commands need not wait for

    low = high = None
    if differences.size > 1:
        interval = bootstrap((differences,), np.mean, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method="percentile",
                             rng=np.random.default_rng(0)).confidence_interval
        low, high = float(interval.low), float(interval.high)
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    p = float(binomtest(better, better + worse).pvalue) if better + worse else 1.0
    return PairedDifference(differences.size, float(differences.mean()), low, high, p)
