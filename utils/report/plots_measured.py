"""Pictures of what lies behind an accuracy: `confusion.svg` (whose classes take whose images) and `timeline.svg` (where the time goes)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from utils.formulas.diagnosis import shares
from utils.report.drawing import LIGHT, SMALL, TEXT, Theme, few_ticks, import_matplotlib, ink_on, new_figure, plain, seeds_title
from utils.report.plots import draw_cells
from utils.report.results import RunResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUMBERS_UP_TO = 12  # tasks with a number in each cell
WORDS = {"before": "before alignment", "after": "after the last task"}


def mean_confusion(result: RunResult, which: str) -> np.ndarray:
    """Percent of each task's images (rows) by the task of the class they are taken for (columns), mean over seeds, (T, T), nan: none."""
    return np.array([shares(seed.confusion[which]) for seed in result.seeds], dtype=float).mean(axis=0)


def confusions(result: RunResult) -> list[str]:
    """Which confusions every seed has, in the order of time: "before" alignment, "after"."""
    return [which for which in WORDS if result.seeds and all(which in seed.confusion for seed in result.seeds)]


def confusion_figure(result: RunResult, theme: Theme = LIGHT) -> Figure:
    """`mean_confusion` as one field of cells, or two where a method aligns: what the alignment moved."""
    import_matplotlib()
    from matplotlib.colors import LinearSegmentedColormap

    there = confusions(result)
    tables = [mean_confusion(result, which) for which in there]
    side = min(max(0.5 * len(tables[0]), 2.4), 5.0)  # inches
    figure, axes = new_figure((side + 0.75) * len(there) + 0.5, side + 1.5, theme, columns=len(there))
    colours = LinearSegmentedColormap.from_list("share", theme.cells)
    for panel, which, table in zip(np.atleast_1d(axes), there, tables, strict=True):
        image = draw_cells(panel, table, colours, theme, 0, 100)
        for (i, j), value in np.ndenumerate(table):
            if len(table) <= NUMBERS_UP_TO and not np.isnan(value):
                ink = ink_on(image.to_rgba(value)[:3])
                panel.text(j + 0.5, i + 0.5, f"{value:.0f}", ha="center", va="center", fontsize=SMALL, color=ink)
        _label(panel, len(table), theme)
        words = WORDS[which] if which == "before" or len(there) == 1 else "after alignment"
        panel.set_title(words, loc="left", fontsize=TEXT, color=theme.text)
    figure.suptitle(seeds_title("Where each task's images go (%)", [result], "mean"), x=0.02, ha="left", fontsize=TEXT, color=theme.text)
    return figure


def _label(panel: Axes, tasks: int, theme: Theme) -> None:
    numbers = few_ticks(range(1, tasks + 1))
    panel.set_xticks([n - 0.5 for n in numbers], [str(n) for n in numbers])
    panel.set_yticks([n - 0.5 for n in numbers], [str(n) for n in numbers])
    panel.set_xlabel("taken for a class of task", fontsize=SMALL, color=theme.text)
    panel.set_ylabel("images of task", fontsize=SMALL, color=theme.text)


def timeline_figure(result: RunResult, theme: Theme = LIGHT) -> Figure:
    """Stages of the first seed's run over time, one line of bars per stage; thin rules where a task ends."""
    spans = result.seeds[0].timeline
    stages = list(dict.fromkeys(span["stage"] for span in spans))
    figure, axes = new_figure(7.4, 1.0 + 0.34 * len(stages), theme)
    for row, stage in enumerate(stages):
        bars = [(span["begin"], span["end"] - span["begin"]) for span in spans if span["stage"] == stage]
        axes.broken_barh(bars, (row - 0.32, 0.64), facecolors=theme.lines[row % len(theme.lines)], linewidth=0)
    for end in task_ends(spans):
        axes.axvline(end, color=theme.faint, linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(stages)), [plain(stage) for stage in stages])
    axes.invert_yaxis()
    axes.set_xlim(0, max(span["end"] for span in spans))
    axes.set_xlabel("seconds", fontsize=SMALL, color=theme.text)
    title = f"Where the time went, seed {result.seeds[0].seed}; a rule ends each task"
    axes.set_title(title, loc="left", fontsize=TEXT, color=theme.text, pad=8)
    return figure


def task_ends(spans: Sequence[dict]) -> list[float]:
    """Seconds at which each task's last stage ended, in the order of the tasks."""
    ends: dict[int, float] = {}
    for span in spans:
        ends[span["task"]] = max(ends.get(span["task"], 0.0), span["end"])
    return [ends[task] for task in sorted(ends)]
