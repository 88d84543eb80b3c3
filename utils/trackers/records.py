"""The lines of metrics.jsonl as named numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from utils.run.metrics_file import METRICS, read_metrics

RECORDS = ("epoch", "alignment", "task")  # kinds of lines
PLACE = ("kind", "run", "seed")  # say where a number belongs, and are none


class Steps:
    """Numbers the records of each kind from 1: the n-th epoch of a seed, its n-th alignment epoch, its n-th task."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def of(self, record: Mapping[str, Any]) -> int:
        self._seen[record["kind"]] += 1
        return self._seen[record["kind"]]


def named_numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """{"epoch/loss": 0.3, "epoch/lr/head": 0.01, "task/per_task/2": 88.0, ...}; what is None or no number has no entry."""
    facts = {key: value for key, value in record.items() if key not in PLACE}
    return dict(_numbers(record["kind"], facts))


def written_records(folder: Path) -> list[dict[str, Any]]:
    """What a resumed seed had written into its metrics.jsonl, and will not write again."""
    return [record for record in read_metrics(folder / METRICS) if record["kind"] in RECORDS]


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(f"{name}/{key}", inner)
    elif isinstance(value, list):
        for number, inner in enumerate(value, start=1):
            yield from _numbers(f"{name}/{number}", inner)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name, float(value)
