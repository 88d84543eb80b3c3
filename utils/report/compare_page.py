"""What the page of a comparison shows (`templates/compare.html.j2`)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from utils.report.comparable import by_value
from utils.report.compare_tables import CAPTION, HEADER, LOUD, Cell, Entry, kept_bytes_after, most_tasks
from utils.report.drawing import few_ticks
from utils.report.line_styles import MOST_COLOURED
from utils.report.result_rows import MEMORY_KINDS
from utils.report.tables import bytes_text, printable, stream_text
from utils.run.runs import command_line, read_status

MOST_SIDE_BY_SIDE = 5  # runs with a column each in the table of settings
RUN_FILES = {"report": "report.html", "JSON": "results.json", "CSV": "results.csv", "every number": "results_tidy.csv"}


def page_context(out: Path, entries: Sequence[Entry], rows: Sequence[Sequence[Cell]], notes: Sequence[str]) -> dict[str, Any]:
    """Everything but the pictures and the tables of differences."""
    first = entries[0].result
    after = few_ticks(range(most_tasks(entries)))
    memory = [["Method", *(kind.capitalize() for kind in MEMORY_KINDS)]]
    growth = [["Method", *(f"Task {t + 1}" for t in after)]]
    for entry in entries:
        kept = entry.result.seeds[0].memory_bytes
        memory.append([entry.label, *(bytes_text(kept.get(kind)) for kind in MEMORY_KINDS)])
        growth.append([entry.label, *(bytes_text(kept_bytes_after(entry.result, t)["mean"]) for t in after)])
    made = datetime.now().astimezone().isoformat(" ", "minutes")
    return {
        "title": f"Comparison on {first.dataset_words}", "many": len(entries) > MOST_COLOURED,
        "subtitle": printable(f"{len(entries)} runs, {first.num_classes} classes"),
        "loud": LOUD, "notes": notes, "header": HEADER, "rows": rows, "caption": CAPTION.format(mark="Bold"),
        "memory": memory, "growth": growth, "runs": [_run(out, entry) for entry in entries],
        "made": [(name, value) for name, value in (("Made", made), ("Command", command_line())) if value],
    }


def settings_shown(differ: Sequence[Sequence[str]]) -> Sequence[Sequence[str]]:
    """`settings_that_differ` as a page shows it: a column per run, or of many runs a row per value."""
    return by_value(differ) if differ and len(differ[0]) - 1 > MOST_SIDE_BY_SIDE else differ


def _run(out: Path, entry: Entry) -> dict[str, Any]:
    """Which run it is, and where its files are seen from `out`."""
    folder = entry.folder
    started = read_status(folder).get("started") if folder else None
    files = [(words, quote(Path(os.path.relpath(folder / name, out)).as_posix())) for words, name in RUN_FILES.items()
             if (folder / name).is_file()] if folder else []
    return {"label": entry.label, "run": entry.run, "started": str(started or "-"), "network": entry.result.backbone,
            "stream": stream_text(entry.result), "files": files}
