"""`python main.py status FOLDER`: what became of all the runs in a folder, planned ones too.

Reads what the runs write anyway (run.json, metrics.jsonl, the lock) and the jobs of sweeps (`queue.py`); it touches nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.report.tables import seconds_text
from utils.run.locks import is_locked
from utils.run.metrics_file import METRICS, read_metrics
from utils.run.runs import read_status, runs_in
from utils.sweep.places import slurm_states
from utils.sweep.queue import Queue, last_line
from utils.terminal import show

LONGEST_NOTE = 160  # characters
STOPPED = "stopped;"  # how main.py begins the last line of a run that was asked to end
NOT_ENTERED = {"submitit", "configs", "points", "jobs"}  # of a sweep's folder


@dataclass(frozen=True)
class Line:
    """One run as the list shows it."""

    name: str
    state: str
    progress: str = ""
    note: str = ""


def status(folder: Path) -> None:
    """Print a line for every run in `folder` and how many there are of each kind. Raises UserError: there is none."""
    lines = list(lines_of(folder))
    if not lines:
        raise UserError(f"{folder} holds no run and no sweep; name the folder given with --out (default: logs)")
    rows = [("run", "state", "tasks", ""), *((line.name, line.state, line.progress, line.note) for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    show("\n".join("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip() for row in rows))
    words = list(dict.fromkeys(line.state for line in lines))
    show(f"\n{', '.join(f'{sum(line.state == word for line in lines)} {word}' for word in words)}")


def lines_of(folder: Path) -> Iterator[Line]:
    """A line for each job of the sweeps in `folder`, and for each run that is no job's."""
    if (folder / "run.json").is_file():
        yield line_of_run(folder.parent.name, folder)
        return
    queues, runs = _found(folder)
    records = [queue.record(job.name) for queue in queues for job in queue.jobs]
    in_slurm = slurm_states() if any(record is not None and record["on"] == "slurm" for record in records) else None
    shown: set[Path] = set()
    for queue in queues:
        for job in queue.jobs:
            newest = runs_in(job.experiment)[-1:]
            state = queue.state(job, in_slurm)
            word = "stopped" if state.last.startswith(STOPPED) else state.word
            name = os.path.relpath(job.experiment, folder)
            if newest and queue.record(job.name) is not None:
                shown.add(newest[0].resolve())
                yield Line(name, word, _progress(newest[0]), state.last or (_left(newest[0]) if state.word == "running" else ""))
            else:
                yield Line(name, word, "", state.last)
    yield from (line_of_run(os.path.relpath(run, folder), run) for run in runs if run.resolve() not in shown)


def line_of_run(name: str, run: Path) -> Line:
    """A run that no sweep started."""
    if read_status(run).get("finished"):
        return Line(name, "done", _progress(run))
    if is_locked(run):
        return Line(name, "running", _progress(run), _left(run))
    logs = sorted(run.glob("seed*/log.txt"), key=os.path.getmtime)
    return Line(name, "stopped", _progress(run), last_line(str(logs[-1].with_suffix("")), (".txt",))[:LONGEST_NOTE] if logs else "")


def _found(folder: Path) -> tuple[list[Queue], list[Path]]:
    """The queues and the runs anywhere in `folder`."""
    queues, runs = [], []
    for parent, folders, files in os.walk(folder):
        folders.sort()
        if "jobs.json" in files:
            queues.append(Queue.read(Path(parent)))
            folders[:] = [name for name in folders if name not in NOT_ENTERED]
        elif "run.json" in files:
            runs.append(Path(parent))
            folders.clear()
    return queues, runs


def _tasks_done(run: Path) -> list[dict]:
    """The records of finished tasks, seed after seed."""
    return [record for file in sorted(run.glob(f"seed*/{METRICS}"), key=os.path.getmtime)
            for record in read_metrics(file, warn=lambda words: None) if record["kind"] == "task"]


def _progress(run: Path) -> str:
    """"12 of 30", over all seeds; empty before the first."""
    done, seed = _tasks_done(run), (read_status(run).get("config") or {}).get("seed", 0)
    if not done or not isinstance(done[-1].get("tasks"), int):
        return ""
    return f"{len(done)} of {done[-1]['tasks'] * (len(seed) if isinstance(seed, list) else 1)}"


def _left(run: Path) -> str:
    """The time that is left by what the tasks so far took; empty where it is not known yet."""
    done = _tasks_done(run)
    times = done[-1].get("seconds") if done else None
    left = times.get("left") if isinstance(times, dict) else None
    if not isinstance(left, float):
        return ""
    since = time.time() - max(file.stat().st_mtime for file in run.glob(f"seed*/{METRICS}"))
    return f"about {seconds_text({'mean': max(left - since, 0.0), 'std': None})} left"
