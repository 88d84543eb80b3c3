"""metrics.jsonl of one seed: one JSON object per line, as the run goes on. A line of it may be damaged; the others still count."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"
MOST_BYTES = 2**24  # of one line; the line after a task of 2,000 takes some hundred kilobytes
log = logging.getLogger("slca")


def read_metrics(path: Path, warn: Callable[[str], None] = log.warning) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, also of a run that is still going; none where there is no such file.

    Lines that are no records (the last one of a run that was killed while it wrote, bytes that a failing disk changed) are left
    out, and `warn` is told so once.
    """
    records: list[dict[str, Any]] = []
    damaged: list[int] = []
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(iter(lambda: stream.readline(MOST_BYTES), b""), start=1):
                record = _record(line)
                if record is not None:
                    records.append(record)
                elif line.strip():
                    damaged.append(number)
    except FileNotFoundError:
        pass
    except OSError as error:
        warn(f"{path} cannot be read further: {error.strerror or error}; {len(records)} lines of it count")
    if damaged:
        which = f"line {damaged[0]} is" if len(damaged) == 1 else f"{len(damaged)} lines are (the first is line {damaged[0]})"
        warn(f"{path}: {which} damaged or half written, and passed over")
    return records


def _record(line: bytes) -> dict[str, Any] | None:
    """The record of a line, with what places it in its run: "kind", "task" and of an epoch "epoch". None where it is none."""
    try:
        record = json.loads(line.decode())
    except (ValueError, RecursionError):  # no UTF-8, no JSON, or nested without end
        return None
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        return None
    places = ("task", "epoch") if record["kind"] == "epoch" else ("task",)
    return record if all(type(record.get(key)) is int for key in places) else None
