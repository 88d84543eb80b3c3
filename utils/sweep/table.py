"""The table of a sweep: a row per point (a config with the values tried), best validation accuracy first, as json, csv and Markdown.

The seeds of a point may have been runs of their own; here they are one result again, as if one run had had them all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import storage_errors_told, write_atomic
from utils.json_files import json_text
from utils.report.compare_tables import markdown_table, training_seconds
from utils.report.results import RunResult, Statistic, csv_text, read_results, write_results
from utils.report.tables import mean_std_text, text_table
from utils.run.runs import read_status, runs_in
from utils.sweep.plan import Point

FIGURES = {"last_validation": "Validation (%)", "last": "Last (%)", "average_incremental": "Average incremental (%)",
           "forgetting": "Forgetting (%)"}
WORDS = ("Best validation accuracy after the last task first: it is of held-out training images, and it alone chose. The other figures are "
         "of the test images. Mean ± standard deviation over the seeds.")


@dataclass(frozen=True)
class Row:
    """One point and what its runs gave."""

    point: Point
    state: str                  # done, pruned, failed, or how many of its runs are done
    result: RunResult | None    # of the seeds that are done

    @property
    def validation(self) -> float | None:
        """Percent, mean over the seeds; None where nothing is done."""
        return None if self.result is None else self.result.summary["last_validation"]["mean"]

    def figure(self, key: str) -> Statistic:
        return {"mean": None, "std": None} if self.result is None else self.result.shown(key)


def finished_result(experiment: Path) -> RunResult | None:
    """What the newest finished run in `experiment` gave; None where there is none."""
    finished = [run for run in runs_in(experiment) if read_status(run).get("finished")]
    try:
        return read_results(finished[-1] / "results.json") if finished else None
    except UserError:  # taken away, or damaged
        return None


def merged(results: Sequence[RunResult]) -> RunResult | None:
    """Runs that differ in their seed alone as one result; None for none."""
    if not results:
        return None
    seeds = [seed for result in results for seed in result.seeds]
    config = {**results[0].config, "seed": [seed.seed for seed in seeds]}
    return replace(results[0], seeds=seeds, config=config, summary={})


def best_first(rows: Sequence[Row]) -> list[Row]:
    """Finished points by validation accuracy, then what is unfinished, pruned or failed."""
    return sorted(rows, key=lambda row: (row.state != "done", row.validation is None, -(row.validation or 0.0)))


def write_table(folder: Path, rows: Sequence[Row]) -> str:
    """Write table.json, table.csv, table.md, and a results.json of each point in points/; returns the table as plain text."""
    rows = best_first(rows)
    keys = tried_keys(rows)
    flat = [_flat(row, keys) for row in rows]
    cells = [["config", *keys, "seeds", *FIGURES.values(), "state"], *(_cells(row, keys) for row in rows)]
    with storage_errors_told(folder):
        for row in rows:
            if row.result is not None:
                write_results(row.result, folder / "points" / row.point.name)
        write_atomic(folder / "table.json", json_text([{**line, "values": row.point.values} for line, row in zip(flat, rows, strict=True)]))
        write_atomic(folder / "table.csv", csv_text(flat))
        write_atomic(folder / "table.md", "\n".join([*markdown_table(cells), "", WORDS]) + "\n")
    return "\n".join([*text_table(cells), "", WORDS])


def tried_keys(rows: Sequence[Row]) -> list[str]:
    """The settings that the sweep tried, in its order."""
    return list(dict.fromkeys(key for row in rows for key in row.point.values))


def value_text(value: Any) -> str:
    """A setting's value as it is written behind `--set key=`."""
    return value if isinstance(value, str) else json.dumps(value)


def _flat(row: Row, keys: Sequence[str]) -> dict[str, Any]:
    figures = {f"{key}_{part}": row.figure(key)[part] for key in FIGURES for part in ("mean", "std")}
    seconds = {"mean": None} if row.result is None else training_seconds(row.result)
    seeds = [] if row.result is None else [seed.seed for seed in row.result.seeds]
    tried: Mapping[str, Any] = row.point.values
    return {"point": row.point.name, "config": row.point.file.stem,
            **{key: value_text(tried[key]) if key in tried else None for key in keys}, "seeds": " ".join(map(str, seeds)), **figures,
            "training_seconds_mean": seconds["mean"], "state": row.state}


def _cells(row: Row, keys: Sequence[str]) -> list[str]:
    seeds = 0 if row.result is None else len(row.result.seeds)
    tried = [value_text(row.point.values[key]) if key in row.point.values else "-" for key in keys]
    return [row.point.file.stem, *tried, str(seeds), *(mean_std_text(row.figure(key)) for key in FIGURES), row.state]
