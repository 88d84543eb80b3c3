"""The papers' own figures beside the runs that are the papers' experiments: same stream, settings and images (`published_beside`)."""

from __future__ import annotations

from collections.abc import Sequence

from utils.report.published import published_beside
from utils.report.results import RunResult
from utils.report.tables import mean_std_text


def published_table(labels: Sequence[str], results: Sequence[RunResult]) -> tuple[list[list[str]], str]:
    """Header and a row per run that is a paper's experiment, and where its figures are from; empty where none is."""
    rows = [["Run", "Last (%)", "paper", "Average incremental (%)", "paper"]]
    sources: dict[str, None] = {}
    for label, result in zip(labels, results, strict=True):
        reference = published_beside(result)
        if reference is not None:
            sources[reference.words] = None
            rows.append([label, *(text for key in ("last", "average_incremental")
                                  for text in (mean_std_text(result.shown(key)), mean_std_text(reference.figures.get(key))))])
    return (rows, f"{'; '.join(sources)}. A reference, not measured here.") if len(rows) > 1 else ([], "")
