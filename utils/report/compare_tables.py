"""The table of a comparison: which columns it has, what is best in each, and how it is written in each form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.report.compare_paired import best_continual, paired
from utils.report.result_rows import MEMORY_KINDS
from utils.report.results import RunResult, Statistic, statistic
from utils.report.tables import bytes_text, count_text, mean_std_text, seconds_text, text_table

LATEX_SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$",
    **{character: "\\" + character for character in "&%$#_{}"},
}
MARKDOWN_SPECIAL = {character: "\\" + character for character in "\\|*_`[]<>~#!"}


@dataclass(frozen=True)
class Entry:
    """One run in the comparison."""

    label: str              # unique within the comparison
    run: str                # its folder's last two names, "slca_demo/2025-01-31_12-00-00"
    result: RunResult
    folder: Path | None = None


@dataclass(frozen=True)
class Column:
    """One column: its header, the figure behind it, how that is written, and which end of it is best."""

    key: str
    header: str
    figure: Callable[[RunResult], Statistic]
    text: Callable[[Statistic], str]
    best: Callable[..., float] | None = None
    per_task: bool = False  # compares only between runs with the same split into tasks


@dataclass(frozen=True)
class Cell:
    """What the table shows in one place."""

    text: str
    best: bool = False


def trained_parameters(result: RunResult) -> Statistic:
    """Parameters that trained, in the backbone and in the heads."""
    trained = ("trained_backbone", "trained_heads")
    return statistic(sum(s.parameters.get(name, 0) for name in trained) if s.parameters else None for s in result.seeds)


def kept_bytes(result: RunResult) -> Statistic:
    """What the method keeps after the last task: images, features, statistics, and parameters that are not the pre-trained ones."""
    return statistic(sum(s.memory_bytes.values()) if s.memory_bytes else None for s in result.seeds)


def kept_bytes_after(result: RunResult, task: int, kinds: Sequence[str] = MEMORY_KINDS) -> Statistic:
    """The same of some kinds after task `task`, from 0; None where the run has no such task."""
    curves = [s.memory_curve for s in result.seeds]
    return statistic(sum(curve[task].get(kind, 0) for kind in kinds) if task < len(curve) else None for curve in curves)


def training_seconds(result: RunResult) -> Statistic:
    """Time of all stages but evaluation."""
    return statistic(
        sum(seconds for stage, seconds in s.stage_seconds.items() if stage != "evaluation") if s.stage_seconds else None
        for s in result.seeds
    )


COLUMNS = (
    Column("last", "Last (%)", lambda r: r.shown("last"), mean_std_text, best=max),
    Column("average_incremental", "Average incremental (%)", lambda r: r.shown("average_incremental"), mean_std_text,
           best=max, per_task=True),
    Column("forgetting", "Forgetting (%)", lambda r: r.shown("forgetting"), mean_std_text, best=min, per_task=True),
    Column("trained_parameters", "Trained parameters", trained_parameters, lambda figure: count_text(figure["mean"])),
    Column("memory_bytes", "Memory kept", kept_bytes, lambda figure: bytes_text(figure["mean"])),
    Column("training_seconds", "Training time", training_seconds, seconds_text),
)
SORTABLE = tuple(column.key for column in COLUMNS)
HEADER = ("Method", "Rehearsal-free", *(column.header for column in COLUMNS))
LOUD = "NOT LIKE FOR LIKE, these runs differ in more than the method"
CAPTION = (
    "Mean ± standard deviation over seeds, each of which is another class order (with --pool: or torch seed). {mark}: best continual "
    "method, for accuracy and forgetting, where it stands out: the 95 % bootstrap interval of its difference, seed by seed, to each other "
    "continual method leaves out 0; joint training is not one. Memory kept: images, features, statistics and all parameters that are not "
    "the pre-trained ones, after the last task. Training time: without evaluation."
)


def sort_entries(entries: Sequence[Entry], key: str) -> list[Entry]:
    """Best first by the column `key`: the highest accuracy, the least forgetting or cost; runs without the figure last."""
    column = next(column for column in COLUMNS if column.key == key)
    sign = -1 if column.best is max else 1

    def rank(entry: Entry) -> tuple[bool, float]:
        mean = column.figure(entry.result)["mean"]
        return mean is None, 0.0 if mean is None else sign * mean
    return sorted(entries, key=rank)


def table_rows(entries: Sequence[Entry]) -> list[list[Cell]]:
    """One row per run, cells as in HEADER."""
    columns = [_column_cells(column, [entry.result for entry in entries]) for column in COLUMNS]
    return [
        [Cell(entry.label), Cell("yes" if entry.result.rehearsal_free else "no"), *cells]
        for entry, *cells in zip(entries, *columns, strict=True)
    ]


def _column_cells(column: Column, results: Sequence[RunResult]) -> list[Cell]:
    """The column's cells. Best among the continual methods, if it stands out from all that do not read alike in the table."""
    figures = [column.figure(result) for result in results]
    continual = [result.num_tasks > 1 for result in results]
    splits = {tuple(result.seeds[0].task_sizes) for result in results if result.num_tasks > 1}
    rounded = [None if figure["mean"] is None else round(figure["mean"], 2) for figure in figures]
    contest = [value for value, competes in zip(rounded, continual, strict=True) if competes and value is not None]
    ranked = column.best is not None and len(contest) > 1 and not (column.per_task and len(splits) > 1)
    best = column.best(contest) if ranked and column.best else None
    competing = [(result, value) for result, value, competes in zip(results, rounded, continual, strict=True) if competes]
    winner = next((result for result, value in competing if value == best), None)
    rivals = [result for result, value in competing if value not in (None, best)]
    if winner is not None and not all(paired(winner, rival, column.key).stands_out for rival in rivals):
        best = None
    return [
        Cell(column.text(figure), best=competes and best is not None and value == best)
        for figure, value, competes in zip(figures, rounded, continual, strict=True)
    ]


def terminal(rows: Sequence[Sequence[Cell]], notes: Sequence[str], differ: Sequence[str] = (),
             more: Sequence[tuple[Sequence[Sequence[str]], str]] = ()) -> str:
    """Aligned plain text; the best figure has a star. Of the settings that `differ` only the names are here; `more` are further
    tables, each with the words below it.
    """
    texts = [[cell.text + " *" if cell.best else cell.text + "  " for cell in row] for row in rows]
    lines = text_table([[header + "  " for header in HEADER], *texts])
    loud = [f"{LOUD}:", *(f"  - {note}" for note in notes), ""] if notes else []
    below = ["", f"Settings that differ (their values are on the page): {', '.join(differ)}"] if differ else []
    for table, words in more:
        below += ["", *text_table(table), "", words] if table else []
    return "\n".join([*loud, *lines, "", CAPTION.format(mark="*"), *below])


def markdown(rows: Sequence[Sequence[Cell]], notes: Sequence[str], differ: Sequence[Sequence[str]] = (),
             more: Sequence[tuple[Sequence[Sequence[str]], str]] = ()) -> str:
    """Markdown tables: results, the best figure bold; `more` tables with the words below each; settings that differ."""
    escaped = markdown_text
    lines = [f"> **{LOUD}:**\n>"] * bool(notes) + [f"> - {escaped(note)}" for note in notes] + [""] * bool(notes)
    lines += ["| " + " | ".join(HEADER) + " |", "|---|---|" + "---:|" * len(COLUMNS)]
    for row in rows:
        cells = [f"**{escaped(cell.text)}**" if cell.best else escaped(cell.text) for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", CAPTION.format(mark="Bold")]
    for table, words in more:
        lines += ["", *markdown_table(table), "", words] if table else []
    return "\n".join([*lines, *(["", "Settings that differ:", "", *markdown_table(differ)] if differ else [])]) + "\n"


def markdown_table(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table with a header; nothing in the cells is read as Markdown."""
    head, *body = ["| " + " | ".join(map(markdown_text, row)) + " |" for row in table]
    return [head, "|---|" + "---:|" * (len(table[0]) - 1), *body]


def markdown_text(text: str) -> str:
    return "".join(MARKDOWN_SPECIAL.get(character, character) for character in text)


def latex(rows: Sequence[Sequence[Cell]], notes: Sequence[str]) -> str:
    """A booktabs table; the best figure is bold. Notes and the caption are comments."""
    def escaped(text: str) -> str:
        return "".join(LATEX_SPECIAL.get(character, character) for character in text)

    loud = [f"{LOUD}:"] if notes else []
    lines = [f"% {line}" for line in (*loud, *notes, CAPTION.format(mark="Bold"), r"Needs \usepackage{booktabs}.")]
    lines += [rf"\begin{{tabular}}{{ll{'r' * len(COLUMNS)}}}", r"\toprule"]
    lines += [" & ".join(map(escaped, HEADER)) + r" \\", r"\midrule"]
    for row in rows:
        cells = [rf"\textbf{{{escaped(cell.text)}}}" if cell.best else escaped(cell.text) for cell in row]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def csv_row(entry: Entry, tasks: int, best: RunResult | None = None) -> dict[str, Any]:
    """A run's figures unrounded, mean and standard deviation apart; percent, bytes, seconds; memory after each of `tasks` tasks;
    the difference of the last accuracy to that of the `best` run, seed by seed.
    """
    result = entry.result
    row: dict[str, Any] = {
        "method": entry.label, "learner": result.method, "rehearsal_free": result.rehearsal_free,
        "tasks": result.num_tasks, "seeds": len(result.seeds), "run": entry.run, "dataset": result.dataset,
        "split": result.split,
    }
    for column in COLUMNS:
        figure = column.figure(result)
        row |= {f"{column.key}_mean": figure["mean"], f"{column.key}_std": figure["std"]}
    found = paired(result, result if best is None else best, "last")
    row |= {"difference_to_best": found.mean, "difference_low": found.low, "difference_high": found.high, "sign_test_p": found.sign_test,
            "paired_seeds": found.pairs}
    for t in range(tasks):
        row |= {f"memory_{kind}_after_task_{t + 1}": kept_bytes_after(result, t, [kind])["mean"] for kind in MEMORY_KINDS}
    return row


def best_of(entries: Sequence[Entry]) -> RunResult | None:
    """The run that differences are taken to; None for a single one."""
    results = [entry.result for entry in entries]
    best = best_continual(results)
    return None if best is None else results[best]


def most_tasks(entries: Sequence[Entry]) -> int:
    """Tasks of the run that has most."""
    return max(entry.result.num_tasks for entry in entries)
