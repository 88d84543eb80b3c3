"""Pictures of results: `curve.png` (accuracy over the classes seen) and `matrix.png` (the accuracy matrix).

Files are drawn in the light theme; a page gives them the dark one's colours where the reader's setting is dark (`following_reader`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from utils.report.drawing import LIGHT, SMALL, TEXT, Theme, few_ticks, import_matplotlib, ink_on, new_figure, plain, seeds_title
from utils.report.line_styles import MOST_BANDS, line_styles
from utils.report.results import RunResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

LINE_GAP = 1.25                                     # of two labels, in heights of their text
DECIMALS_UP_TO, NUMBERS_UP_TO = 10, 25              # tasks: "75.2" in a matrix's cells, then "75", then nothing


def curve_figure(
    results: Sequence[RunResult], labels: Sequence[str] | None = None, theme: Theme = LIGHT, chosen: Sequence[str] = (),
) -> Figure:
    """Top-1 accuracy (%) over the classes seen: mean over seeds as a line, mean ± std as a band, one line per run.

    Each line is named at its end, with its last accuracy. A run of one task is a single point: it is drawn as a
    dashed level across the picture. With more than MOST_BANDS runs the bands are left out, and all but the best and the
    `chosen` ones are grey (`line_styles`); the picture grows with the number of names.
    """
    assert results and all(result.seeds for result in results), "a curve needs runs with at least one finished seed"
    figure, axes = new_figure(7.4, max(4.2, 1.6 + LINE_GAP * SMALL / 72 * len(results)), theme)
    banded = len(results) <= MOST_BANDS
    labels = labels or [result.name for result in results]
    ends: list[tuple[float, str, str]] = []                                         # height, label, colour
    for result, label, style in zip(results, labels, line_styles(results, labels, chosen), strict=True):
        grey = style.colour is None
        colour = theme.other if style.colour is None else theme.lines[style.colour]
        curves = np.array([seed.top1_curve for seed in result.seeds], dtype=float)  # (S, T), nan where there was no test image
        seen, mean = result.seeds[0].classes_seen, curves.mean(axis=0)
        if len(seen) == 1:
            axes.axhline(mean[0], color=colour, linewidth=1.5, linestyle=(0, (7, 4)))
        else:
            axes.plot(seen, mean, color=colour, linewidth=1.0 if grey else 2.0, linestyle=style.dash,
                      marker=style.marker, markersize=3 if grey else 5, alpha=0.6 if grey else 1.0, zorder=2.0 if grey else 2.1)
        if banded and len(seen) > 1 and len(curves) > 1:
            spread = curves.std(axis=0, ddof=1)
            axes.fill_between(seen, mean - spread, mean + spread, color=colour, alpha=0.18, linewidth=0)
        last = mean[-1]
        ends.append((0.0 if np.isnan(last) else float(last), f"{plain(label)}  {'-' if np.isnan(last) else f'{last:.1f}'}", colour))
    title = seeds_title("Top-1 accuracy over all classes seen (%)", results, "mean ± std" if banded else "mean")
    _finish_curve(axes, results, title, theme)
    _name_ends(figure, axes, ends)
    return figure


def matrix_figure(result: RunResult, theme: Theme = LIGHT) -> Figure:
    """The accuracy matrix R[t, i] (%), mean over seeds: row t after task t, column i the test images of task i."""
    import_matplotlib()
    from matplotlib.colors import LinearSegmentedColormap

    assert result.seeds, "a matrix needs at least one finished seed"
    matrix = np.array([seed.accuracy_matrix for seed in result.seeds], dtype=float).mean(axis=0)    # (T, T), nan above
    tasks = len(matrix)
    side = min(max(0.52 * tasks, 2.6), 7.0)                                         # inches
    figure, axes = new_figure(side + 1.9, side + 1.3, theme)
    lowest = 0.0 if np.isnan(matrix).all() else max(0.0, 10 * np.floor(np.nanmin(matrix) / 10 - 0.5))
    colours = LinearSegmentedColormap.from_list("accuracy", theme.cells)
    image = draw_cells(axes, matrix, colours, theme, min(lowest, 90.0), 100.0)
    for (t, i), value in np.ndenumerate(matrix):
        if tasks <= NUMBERS_UP_TO and not np.isnan(value):
            ink = ink_on(image.to_rgba(value)[:3])
            digits, points = (1, SMALL) if tasks <= DECIMALS_UP_TO else (0, 7.0)
            axes.text(i + 0.5, t + 0.5, f"{value:.{digits}f}", ha="center", va="center", fontsize=points, color=ink)
    _finish_matrix(figure, axes, image, tasks, theme)
    title = seeds_title("Accuracy on each task (%)", [result], "mean")
    axes.set_title(title, loc="left", fontsize=TEXT, color=theme.text, pad=12)
    return figure


def draw_cells(axes: Axes, values: np.ndarray, colours: Colormap, theme: Theme, low: float, high: float) -> QuadMesh:
    """A field of square cells, row 0 on top; cell (i, j) has its middle at x = j + 0.5, y = i + 0.5; nan is no cell."""
    cells = axes.pcolormesh(np.ma.masked_invalid(values), cmap=colours, vmin=low, vmax=high, edgecolors=theme.background, linewidth=1)
    axes.set_aspect("equal")
    axes.invert_yaxis()
    return cells


def _finish_curve(axes: Axes, results: Sequence[RunResult], title: str, theme: Theme) -> None:
    """Ticks at the ends of tasks, light horizontal rules, words."""
    longest = max((result.seeds[0].classes_seen for result in results), key=len)
    axes.set_xticks(few_ticks(longest))
    axes.set_xlim(0 if len(longest) == 1 else longest[0] - 0.02 * longest[-1], longest[-1] * 1.02)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -2.0), min(high, 100.8))
    axes.grid(axis="y", color=theme.faint, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel("Classes seen", fontsize=TEXT, color=theme.text, labelpad=6)
    axes.set_title(title, loc="left", fontsize=TEXT, color=theme.text, pad=12)


def _name_ends(figure: Figure, axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write each line's label to the right of its end, moved apart where two would overlap, with a thin leader."""
    low, high = axes.get_ylim()
    inches = figure.get_size_inches()[1] * 0.8                                      # the axes' share of the height
    gap = LINE_GAP * SMALL / 72 / inches * (high - low)                             # in percent of accuracy
    ordered = sorted(ends)
    heights = _spread_out([height for height, _, _ in ordered], gap, low, high)
    for (height, label, colour), shifted in zip(ordered, heights, strict=True):
        axes.annotate(
            label, xy=(1.0, height), xytext=(1.045, shifted), xycoords=axes.get_yaxis_transform(),
            fontsize=SMALL, color=colour, fontweight="bold", va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.8, "shrinkA": 1, "relpos": (0, 0.5)},
        )


def _spread_out(heights: Sequence[float], gap: float, low: float = -np.inf, high: float = np.inf) -> list[float]:
    """Ascending heights moved as little as needed to lie `gap` apart: neighbours that overlap share their middle.

    They stay between `low` and `high` where there is room for all of them.
    """
    groups: list[list[float]] = []                                                  # the members' own heights

    def middle(group: list[float]) -> float:
        half = gap * (len(group) - 1) / 2
        return max(min(sum(group) / len(group), high - half), low + half)

    for height in heights:
        groups.append([height])
        while len(groups) > 1 and middle(groups[-1]) - middle(groups[-2]) < gap * (len(groups[-1]) + len(groups[-2])) / 2:
            upper = groups.pop()
            groups[-1] += upper
    return [middle(group) + gap * (k - (len(group) - 1) / 2) for group in groups for k in range(len(group))]


def _finish_matrix(figure: Figure, axes: Axes, image: QuadMesh, tasks: int, theme: Theme) -> None:
    """Task numbers from 1, a colour scale, words."""
    numbers = few_ticks(range(1, tasks + 1))
    axes.set_xticks([n - 0.5 for n in numbers], [str(n) for n in numbers])
    axes.set_yticks([n - 0.5 for n in numbers], [str(n) for n in numbers])
    axes.set_xlabel("test images of task", fontsize=TEXT, color=theme.text, labelpad=6)
    axes.set_ylabel("after learning task", fontsize=TEXT, color=theme.text, labelpad=6)
    scale = figure.colorbar(image, ax=axes, shrink=0.85, aspect=28, pad=0.03)
    scale.outline.set_visible(False)
    scale.ax.tick_params(length=0, labelsize=SMALL, labelcolor=theme.text)
