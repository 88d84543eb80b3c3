"""Several runs side by side: one table (Markdown, CSV, LaTeX, terminal), one picture with all curves, one page.

    python main.py compare logs/finetune_demo logs/slca_demo --out logs/compare

Runs are compared only where that means something: on another data set or another number of classes it is an
error; other splits into tasks, seeds, backbones or machines are allowed and told in a note above the table. A
run of one task (joint training) is an upper bound: it has no average or forgetting and takes no part in "best".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import write_atomic
from utils.plots import curve_figure
from utils.report import PAGES, Picture, write_picture
from utils.results import RunResult, Statistic, csv_text, read_results, statistic
from utils.tables import bytes_text, count_text, mean_std_text, printable, seconds_text, text_table

LATEX_SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{character: "\\" + character for character in "&%$#_{}"},
}
BEST_NOTE = "Best continual method in bold (accuracy and forgetting); mean ± standard deviation over seeds."


@dataclass(frozen=True)
class Entry:
    """One run in the comparison."""

    label: str              # unique within the comparison
    run: str                # its folder's last two names, "slca_demo/2025-01-31_12-00-00"
    result: RunResult


@dataclass(frozen=True)
class Column:
    """One column: its header, the figure behind it, how that is written, and which end of it is best."""

    key: str
    header: str
    figure: Callable[[RunResult], Statistic]
    text: Callable[[Statistic], str]
    best: Callable[[Sequence[float]], float] | None = None
    per_task: bool = False  # says something only between runs with the same split into tasks


@dataclass(frozen=True)
class Cell:
    """What a table shows in one place."""

    text: str
    best: bool = False


def trained_parameters(result: RunResult) -> Statistic:
    """Parameters that trained, in the backbone and in the heads."""
    trained = ("trained_backbone", "trained_heads")
    return statistic(sum(s.parameters.get(name, 0) for name in trained) if s.parameters else None for s in result.seeds)


def kept_bytes(result: RunResult) -> Statistic:
    """What the method keeps after the last task besides the network: images, features, statistics, parameters."""
    return statistic(sum(s.memory_bytes.values()) if s.memory_bytes else None for s in result.seeds)


def training_seconds(result: RunResult) -> Statistic:
    """Time of all stages but evaluation."""
    def of_seed(stages: dict[str, float]) -> float | None:
        return sum(seconds for stage, seconds in stages.items() if stage != "evaluation") if stages else None

    return statistic(of_seed(seed.stage_seconds) for seed in result.seeds)


COLUMNS = (
    Column("last", "Last (%)", lambda r: r.shown("last"), mean_std_text, best=max),
    Column("average_incremental", "Average incremental (%)", lambda r: r.shown("average_incremental"), mean_std_text,
           best=max, per_task=True),
    Column("forgetting", "Forgetting (%)", lambda r: r.shown("forgetting"), mean_std_text, best=min, per_task=True),
    Column("trained_parameters", "Trained parameters", trained_parameters, lambda figure: count_text(figure["mean"])),
    Column("memory_bytes", "Memory kept", kept_bytes, lambda figure: bytes_text(figure["mean"])),
    Column("training_seconds", "Training time", training_seconds, seconds_text),
)
HEADER = ("Method", "Rehearsal-free", *(column.header for column in COLUMNS))


def compare(
    run_folders: Sequence[Path | str], out_dir: Path | str = "logs/compare", labels: Sequence[str] | None = None
) -> str:
    """Print the table of several runs and write `comparison.{md,csv,tex,png,html}` into `out_dir`.

    Args:
        run_folders: each a run's folder, or an experiment's folder, of which the newest run is taken.
        labels: names for the rows; default the methods' titles, with the experiment's name where two are alike.

    Returns:
        The table as plain text, as printed.

    Raises:
        UserError: a folder without results, or runs on different data.
    """
    entries = load_entries(run_folders, labels)
    notes = check_comparable(entries)
    rows = table_rows(entries)
    text = "\n".join([*notes, *([""] if notes else []), *text_table(_starred(rows)), "", "* best continual method"])
    print(text)
    out = Path(out_dir)
    names = [entry.label for entry in entries]
    results = [entry.result for entry in entries]
    picture = write_picture(
        out / "comparison.png", lambda theme: curve_figure(results, names, theme), f"Curves of {', '.join(names)}"
    )
    write_atomic(out / "comparison.md", markdown(rows, notes))
    write_atomic(out / "comparison.csv", csv_text([_csv_row(entry) for entry in entries]))
    write_atomic(out / "comparison.tex", latex(rows, notes))
    page = write_atomic(out / "comparison.html", _page(entries, rows, notes, picture))
    print(f"\ncomparison: {page}")
    return text


# Which runs, and whether they can be compared ------------------------------------------------------------------


def find_results(folder: Path | str) -> Path:
    """The `results.json` of a run's folder, or of the newest run in an experiment's folder (runs are named by time).

    Raises:
        UserError: there is none.
    """
    folder = Path(folder)
    found = [folder / "results.json"] if (folder / "results.json").is_file() else sorted(folder.glob("*/results.json"))
    if not found:
        problem = "has no results.json, nor has any folder in it" if folder.is_dir() else "is not a folder"
        raise UserError(f"compare: {folder} {problem}. Give runs that finished a seed, e.g. logs/slca_demo.")
    return found[-1]


def load_entries(run_folders: Sequence[Path | str], labels: Sequence[str] | None = None) -> list[Entry]:
    """Read the runs and give each a label of its own. Raises UserError."""
    if not run_folders:
        raise UserError("compare: got no run. Give one or more folders, e.g. logs/finetune_demo logs/slca_demo.")
    paths = [find_results(folder).resolve().parent for folder in run_folders]
    results = [read_results(path / "results.json") for path in paths]
    for path, result in zip(paths, results):
        if not result.seeds:
            raise UserError(f"compare: {path / 'results.json'} holds no finished seed. Continue the run with --resume.")
    runs = [f"{path.parent.name}/{path.name}" for path in paths]
    names = [printable(label) for label in labels or [result.name for result in results]]
    for longer in ([path.parent.name for path in paths], runs, [f"run {n + 1}" for n in range(len(runs))]):
        names = [
            f"{name} ({addition})" if names.count(name) > 1 else name for name, addition in zip(names, longer)
        ]
    return [Entry(name, run, result) for name, run, result in zip(names, runs, results)]


def check_comparable(entries: Sequence[Entry]) -> list[str]:
    """Notes on what differs between the runs besides the method.

    Raises:
        UserError: the runs are on different data sets or numbers of classes, so that no figure compares.
    """
    streams = _by(entries, lambda r: f"{r.dataset}, {sum(r.seeds[0].task_sizes)} classes, "
                                     f"{r.config.get('scenario', 'class')}-incremental")
    if len(streams) > 1:
        raise UserError(f"compare: these runs learned different data, so no figure compares: {_listed(streams)}. "
                        "Compare runs of one data set with the same classes.")
    several = [entry for entry in entries if entry.result.num_tasks > 1]
    checks = {
        "splits into tasks; the average and forgetting do not compare": _by(several, lambda r: _split(r.seeds[0].task_sizes)),
        "seeds": _by(entries, lambda r: "seeds " + ", ".join(str(seed.seed) for seed in r.seeds)),
        "backbones": _by(entries, lambda r: r.backbone),
        "machines; times do not compare": _by(entries, lambda r: str(r.environment.get("gpu") or r.environment.get("cpu"))),
    }
    notes = [f"Different {what}: {_listed(groups)}." for what, groups in checks.items() if len(groups) > 1]
    return [printable(note) for note in notes]


def _by(entries: Sequence[Entry], fact: Callable[[RunResult], str]) -> dict[str, list[str]]:
    """The labels of the entries grouped by `fact`."""
    groups: dict[str, list[str]] = {}
    for entry in entries:
        groups.setdefault(fact(entry.result), []).append(entry.label)
    return groups


def _listed(groups: dict[str, list[str]]) -> str:
    return "; ".join(f"{fact} ({', '.join(labels)})" for fact, labels in groups.items())


def _split(sizes: Sequence[int]) -> str:
    return f"{len(sizes)} x {sizes[0]}" if len(set(sizes)) == 1 else " + ".join(map(str, sizes))
