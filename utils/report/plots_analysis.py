"""Pictures of an analysis (utils/report/analysis.py); docs/analysis.md says how to read each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from utils.report.analysis import Analysis
from utils.report.drawing import LIGHT, SMALL, TEXT, Theme, few_ticks, import_matplotlib, ink_on, new_figure, plain
from utils.report.line_styles import DASHES, MARKERS
from utils.report.plots import draw_cells

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUMBERS_UP_TO = 12  # columns with a number in each cell
LEGEND_ROWS, LEGEND_SCALE = 14, 2.0  # of the map's legend: names below each other, size of its points to those on the map
POINT = 9  # area of a point on the map, in square points
WORDS = {"probe_all": "Linear probe, all classes", "nearest_mean_all": "Nearest mean, all classes",
         "probe_seen": "Linear probe, classes seen", "classifier_seen": "The run's classifier, classes seen"}


def knowledge_figure(found: Analysis, theme: Theme = LIGHT) -> Figure:
    """What the features still know, and what the classifier gets out of them, in each state."""
    figure, axes = new_figure(7.4, 4.2, theme)
    _lines(axes, found.states, {words: getattr(found, name) for name, words in WORDS.items()}, theme)
    _finish(axes, "Accuracy on the test images (%)", theme)
    return figure


def cka_figure(found: Analysis, theme: Theme = LIGHT) -> Figure:
    """Linear CKA of every block (columns) in every state (rows) with the pre-trained state."""
    return _cells(np.array(found.cka), found.states, found.blocks, "Likeness to the pre-trained backbone (linear CKA)", theme)


def staleness_figure(found: Analysis, theme: Theme = LIGHT) -> Figure:
    """Cosine of each class's remembered mean with its mean in each state: the classes of a task as one line, mean over them."""
    return _by_task(found, found.mean_cosine, f"Cosine of the {found.kept} means with the means now", theme)


def frechet_figure(found: Analysis, theme: Theme = LIGHT) -> Figure:
    """Frechet distance of each class's remembered Gaussian to its own in each state, the same way."""
    return _by_task(found, found.frechet, f"Distance of the {found.kept} Gaussians to those now (in the class's spread)", theme)


def _by_task(found: Analysis, table: list[list[float | None]], title: str, theme: Theme) -> Figure:
    """table: (S, K). One line per task, the mean over its classes."""
    figure, axes = new_figure(7.4, 3.8, theme)
    owner, values = np.array(found.task_of_class), np.array(table, dtype=float)  # (K,), (S, K)
    lines = {}
    for task in sorted(set(found.task_of_class)):
        means = values[:, owner == task].mean(axis=1)
        lines[f"classes of task {task}"] = [None if np.isnan(value) else float(value) for value in means]
    _lines(axes, found.states, lines, theme)
    _finish(axes, title, theme)
    return figure


def heads_figure(found: Analysis, theme: Theme = LIGHT) -> Figure:
    """Mean logit, weight length and share of predictions of each task's head, before and after alignment."""
    panels = {"share": "Share of predictions (%)", "mean_logit": "Mean logit", "weight_norm": "Mean length of weights"}
    figure, axes = new_figure(9.6, 3.4, theme, columns=3)
    for panel, (name, words) in zip(axes, panels.items(), strict=True):
        values = {which: getattr(bias, name) for which, bias in found.heads.items()}
        heads = [str(n + 1) for n in range(len(next(iter(values.values()))))]
        _lines(panel, heads, values if len(values) > 1 else {"": values["after"]}, theme, words_for_line=" alignment")
        panel.set_xlabel("head of task", fontsize=SMALL, color=theme.text)
        _finish(panel, words, theme, legend=panel is axes[0] and len(values) > 1)
    return figure


def map_figure(found: Analysis, theme: Theme = LIGHT) -> Figure:
    """The test images as points, one panel per state: by task, and below by class where colour and marker tell all classes apart."""
    rows: list[tuple[list[int], list[str]]] = [(found.map_tasks, [f"task {task}" for task in sorted(set(found.map_tasks))])]
    if found.map_classes and len(found.class_names) <= len(theme.lines) * len(MARKERS):
        rows.append((found.map_classes, [found.class_names[label] for label in sorted(set(found.map_classes))]))
    figure, axes = new_figure(3.3 * len(found.map) + 1.5, 3.5 * len(rows), theme, rows=len(rows), columns=len(found.map))
    panels = np.atleast_2d(axes) if len(rows) == 1 else np.reshape(axes, (len(rows), len(found.map)))
    for line, (owners, names) in zip(panels, rows, strict=True):
        for panel, (state, points) in zip(line, found.map.items(), strict=True):
            _points(panel, np.array(points), np.array(owners), names, theme)
            panel.set_title(f"{state}, {found.map_method}", loc="left", fontsize=TEXT, color=theme.text)
        line[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=SMALL, labelcolor=theme.text,
                        ncols=-(-len(names) // LEGEND_ROWS), markerscale=LEGEND_SCALE)
    return figure


def _points(panel: Axes, places: np.ndarray, owners: np.ndarray, names: list[str], theme: Theme) -> None:
    """places: (N, 2), owners: (N,) with one name for each that occurs; neighbours in their order differ in colour and in marker."""
    for number, (owner, name) in enumerate(zip(sorted(set(owners.tolist())), names, strict=True)):
        turn, colour = divmod(number, len(theme.lines))
        panel.scatter(*places[owners == owner].T, s=POINT, alpha=0.7, linewidth=0, color=theme.lines[colour],
                      marker=MARKERS[(colour + turn) % len(MARKERS)], label=plain(name), rasterized=True)
    panel.set_xticks([])
    panel.set_yticks([])


def _lines(axes: Axes, places: list[str], lines: dict[str, list[float | None]], theme: Theme, words_for_line: str = "") -> None:
    """One line per entry, told apart by colour, dash and marker; None leaves a gap."""
    for number, (label, values) in enumerate(lines.items()):
        heights = [np.nan if value is None else value for value in values]
        axes.plot(range(len(places)), heights, label=plain(label + words_for_line), color=theme.lines[number % len(theme.lines)],
                  linestyle=DASHES[number % len(DASHES)], marker=MARKERS[number % len(MARKERS)], markersize=5)
    shown = few_ticks(range(len(places)))
    axes.set_xticks(shown, [places[n] for n in shown])


def _finish(axes: Axes, title: str, theme: Theme, legend: bool = True) -> None:
    axes.grid(axis="y", color=theme.faint, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_title(title, loc="left", fontsize=TEXT, color=theme.text)
    if legend:
        axes.legend(frameon=False, fontsize=SMALL, labelcolor=theme.text, loc="best")


def _cells(table: np.ndarray, rows: list[str], columns: list[str], title: str, theme: Theme) -> Figure:
    """A field of numbers in [0, 1] with names on both sides."""
    import_matplotlib()
    from matplotlib.colors import LinearSegmentedColormap

    figure, axes = new_figure(min(1.8 + 0.75 * len(columns), 9.6), 1.4 + 0.42 * len(rows), theme)
    cells: Any = draw_cells(axes, table, LinearSegmentedColormap.from_list("likeness", theme.cells), theme, 0.0, 1.0)
    axes.set_aspect("auto")
    if len(columns) <= NUMBERS_UP_TO:
        for (i, j), value in np.ndenumerate(table):
            axes.text(j + 0.5, i + 0.5, f"{value:.2f}", ha="center", va="center", fontsize=SMALL, color=ink_on(cells.to_rgba(value)[:3]))
    axes.set_xticks([n + 0.5 for n in few_ticks(range(len(columns)))], [columns[n] for n in few_ticks(range(len(columns)))])
    axes.set_yticks([n + 0.5 for n in few_ticks(range(len(rows)))], [rows[n] for n in few_ticks(range(len(rows)))])
    axes.set_title(title, loc="left", fontsize=TEXT, color=theme.text)
    return figure
