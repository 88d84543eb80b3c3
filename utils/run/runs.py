"""Which runs an experiment's folder holds, oldest first. Needs no torch, so that reading results starts at once."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

MOST_BYTES = 2**26  # of a run.json; a resolved config takes some kilobytes


def runs_in(experiment: Path, holding: str = "run.json") -> list[Path]:
    """The runs' folders that hold the file `holding`, oldest first.

    Runs count themselves in run.json as they are made, since their names are times and a clock may be set back; runs without
    a number are older than those with one, and go by name.
    """
    folders = [file.parent for file in experiment.glob(f"*/{holding}") if file.is_file()]
    return sorted(folders, key=lambda folder: (_number(folder), folder.name))


def newest_holding(folder: Path, name: str) -> Path | None:
    """The folder itself where the file `name` is in it, else the newest run in it that holds one; None where there is none."""
    return folder if (folder / name).is_file() else next(reversed(runs_in(folder, name)), None)


def next_number(experiment: Path) -> int:
    """What the next run of this experiment is called in run.json, from 1."""
    return max(map(_number, runs_in(experiment)), default=0) + 1


def read_status(run: Path) -> dict[str, Any]:
    """What run.json holds; nothing when it cannot be read, or its config is no object."""
    try:
        if not (run / "run.json").is_file() or os.path.getsize(run / "run.json") > MOST_BYTES:
            return {}
        content = json.loads((run / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) and isinstance(content.get("config", {}), dict) else {}


def command_line() -> str | None:
    """The command that started this process, as a person would type it again; None in a notebook or another program."""
    program = Path(sys.argv[0]).name if sys.argv else ""
    return shlex.join(["python", program, *sys.argv[1:]]) if program == "main.py" else None


def _number(run: Path) -> int:
    number = read_status(run).get("number")
    return number if isinstance(number, int) else 0
