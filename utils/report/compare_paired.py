"""A comparison's differences seed by seed: each run against the best one, over the seeds (class orders) that both have."""

from __future__ import annotations

from collections.abc import Sequence

from utils.formulas.paired import PairedDifference, paired_difference
from utils.report.results import RunResult

WORDS = (
    "Difference: mean over the seeds that both runs learned in the same class order (with --pool: and with the same torch seed). "
    "Interval: 95 % percentile bootstrap over these seeds; with few seeds it is too narrow rather than too wide, and torch seeds of one "
    "class order are not independent. Sign test: two-sided p; with {pairs} it cannot be less than {least:.2g}."
)


def paired(ours: RunResult, theirs: RunResult, figure: str) -> PairedDifference:
    """Difference of a seed's `figure` ("last", "forgetting", ...) over the seeds that both have, with the same order of classes."""
    other = {(seed.seed, seed.torch_seed): seed for seed in theirs.seeds}
    both = [(seed, other[key]) for seed in ours.seeds
            if (key := (seed.seed, seed.torch_seed)) in other and seed.class_order == other[key].class_order]
    values = [(getattr(mine, figure), getattr(its, figure)) for mine, its in both]
    defined = [(mine, its) for mine, its in values if mine is not None and its is not None]
    return paired_difference([mine for mine, _ in defined], [its for _, its in defined])


def best_continual(results: Sequence[RunResult]) -> int | None:
    """Which continual run has the highest last accuracy; None with fewer than two runs."""
    means = {number: result.summary["last"]["mean"] for number, result in enumerate(results) if result.num_tasks > 1}
    known = {number: mean for number, mean in means.items() if mean is not None}
    return max(known, key=lambda number: known[number]) if known and len(results) > 1 else None


def paired_table(labels: Sequence[str], results: Sequence[RunResult]) -> tuple[list[list[str]], str]:
    """Header and a row per run but the best: its last accuracy less the best one's; and the words below. Empty for one run."""
    best = best_continual(results)
    if best is None:
        return [], ""
    rows = [["Last accuracy less that of " + labels[best], "Difference", "95 % interval", "Sign test p", "Pairs"]]
    most = 0
    for number, (label, result) in enumerate(zip(labels, results, strict=True)):
        if number != best:
            found = paired(result, results[best], "last")
            most = max(most, found.pairs)
            rows.append([label, _signed(found.mean), f"{_signed(found.low)} to {_signed(found.high)}" if found.low is not None else "-",
                         "-" if found.sign_test is None else f"{found.sign_test:.3g}", str(found.pairs)])
    return rows, WORDS.format(pairs="one pair" if most == 1 else f"{most} pairs", least=min(1.0, 2 * 0.5**most))


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"
