"""Pictures of results: `curve.png` (accuracy over the classes seen) and `matrix.png` (the accuracy matrix).

Drawn on matplotlib's Agg canvas through `Figure` objects: no global state, no display. Each picture exists in a
light and a dark theme, since the report page follows the reader's setting; files on disk are the light one. matplotlib is
imported when the first picture is drawn: training needs none of it.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from utils.report.results import RunResult
from utils.terminal import visible_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

DPI = 200
TEXT, SMALL = 10.0, 9.0                             # points
LINE_GAP = 1.25                                     # of two labels, in heights of their text
LONGEST_LABEL = 34                                  # characters
MARGIN = 0.12                                       # inches around everything
MOST_BANDS = 7                                      # lines with a band of one std before bands hide the lines
MOST_TICKS = 10                                     # on an axis before ticks are left out
DECIMALS_UP_TO, NUMBERS_UP_TO = 10, 25              # tasks: "75.2" in a matrix's cells, then "75", then nothing
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1.2)))        # a new one each time the colours are used up


@dataclass(frozen=True)
class Theme:
    """Colours of a picture; `lines` follows Okabe and Ito's palette, which colour-blind readers can tell apart."""

    background: str
    text: str
    faint: str
    lines: tuple[str, ...]
    cells: tuple[str, ...]                          # of the matrix, from the lowest to the highest accuracy


LIGHT = Theme(
    background="#ffffff", text="#1f2430", faint="#d5d9e2",
    lines=("#0072B2", "#D55E00", "#009E73", "#C2629B", "#8A6D00", "#3FA0D8", "#555B66"),
    cells=("#f3f8fd", "#c6dbef", "#6baed6", "#2171b5", "#0b3a75"),
)
DARK = Theme(
    background="#1a1e27", text="#e6e8ee", faint="#3d4352",
    lines=("#56B4E9", "#E69F00", "#2FC79A", "#E39BC4", "#F0E442", "#7C9DF2", "#B4BAC6"),
    cells=("#202836", "#1f3f66", "#2a6cab", "#69aee0", "#dcefff"),
)


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG file's bytes; the same figure gives the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def curve_figure(results: Sequence[RunResult], labels: Sequence[str] | None = None, theme: Theme = LIGHT) -> Figure:
    """Top-1 accuracy (%) over the classes seen: mean over seeds as a line, mean ± std as a band, one line per run.

    Each line is named at its end, with its last accuracy. A run of one task is a single point: it is drawn as a
    dashed level across the picture. With more than MOST_BANDS runs the bands are left out; the picture grows with
    the number of names.
    """
    assert results and all(result.seeds for result in results), "a curve needs runs with at least one finished seed"
    figure, axes = _figure(7.4, max(4.2, 1.6 + LINE_GAP * SMALL / 72 * len(results)), theme)
    banded = len(results) <= MOST_BANDS
    labels = labels or [result.name for result in results]
    ends: list[tuple[float, str, str]] = []                                         # height, label, colour
    for number, (result, label) in enumerate(zip(results, labels, strict=True)):
        colour = theme.lines[number % len(theme.lines)]
        dash = DASHES[number // len(theme.lines) % len(DASHES)]
        curves = np.array([seed.top1_curve for seed in result.seeds])               # (S, T)
        seen, mean = result.seeds[0].classes_seen, curves.mean(axis=0)
        if len(seen) == 1:
            axes.axhline(mean[0], color=colour, linewidth=1.5, linestyle=(0, (7, 4)))
        else:
            axes.plot(seen, mean, color=colour, linewidth=2.0, linestyle=dash, marker="o", markersize=4)
        if banded and len(seen) > 1 and len(curves) > 1:
            spread = curves.std(axis=0, ddof=1)
            axes.fill_between(seen, mean - spread, mean + spread, color=colour, alpha=0.18, linewidth=0)
        ends.append((float(mean[-1]), f"{_plain(label)}  {mean[-1]:.1f}", colour))
    title = _title("Top-1 accuracy over all classes seen (%)", results, "mean ± std" if banded else "mean")
    _finish_curve(axes, results, title, theme)
    _name_ends(figure, axes, ends)
    return figure


def matrix_figure(result: RunResult, theme: Theme = LIGHT) -> Figure:
    """The accuracy matrix R[t, i] (%), mean over seeds: row t after task t, column i the test images of task i."""
    _import_matplotlib()
    from matplotlib.colors import LinearSegmentedColormap

    assert result.seeds, "a matrix needs at least one finished seed"
    matrix = np.array([seed.accuracy_matrix for seed in result.seeds], dtype=float).mean(axis=0)    # (T, T), nan above
    tasks = len(matrix)
    side = min(max(0.52 * tasks, 2.6), 7.0)                                         # inches
    figure, axes = _figure(side + 1.9, side + 1.3, theme)
    lowest = 0.0 if np.isnan(matrix).all() else max(0.0, 10 * np.floor(np.nanmin(matrix) / 10 - 0.5))
    colours = LinearSegmentedColormap.from_list("accuracy", theme.cells)
    image = axes.imshow(np.ma.masked_invalid(matrix), cmap=colours, vmin=min(lowest, 90.0), vmax=100.0)
    for (t, i), value in np.ndenumerate(matrix):
        if tasks <= NUMBERS_UP_TO and not np.isnan(value):
            ink = _ink_on(image.to_rgba(value)[:3])
            digits, points = (1, SMALL) if tasks <= DECIMALS_UP_TO else (0, 7.0)
            axes.text(i, t, f"{value:.{digits}f}", ha="center", va="center", fontsize=points, color=ink)
    _finish_matrix(figure, axes, image, tasks, theme)
    title = _title("Accuracy on each task (%)", [result], "mean")
    axes.set_title(title, loc="left", fontsize=TEXT, color=theme.text, pad=12)
    return figure


def _import_matplotlib() -> None:
    """Import matplotlib, whatever MPLBACKEND says: a notebook's backend, or a toolkit's, that is not installed here is no error."""
    if "matplotlib" in sys.modules:
        return
    asked = os.environ.pop("MPLBACKEND", None)  # a name that matplotlib does not know would end its import half-way
    try:
        matplotlib = importlib.import_module("matplotlib")
    finally:
        if asked is not None:
            os.environ["MPLBACKEND"] = asked
    if asked:
        with suppress(ValueError):  # for other users of matplotlib in this process
            matplotlib.rcParams["backend"] = asked


def _figure(width: float, height: float, theme: Theme) -> tuple[Figure, Axes]:
    """An empty figure of `width` x `height` inches with bare axes."""
    _import_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    margins = ConstrainedLayoutEngine(w_pad=MARGIN, h_pad=MARGIN)
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=theme.background, layout=margins)
    axes = figure.add_subplot(facecolor=theme.background)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=SMALL, labelcolor=theme.text)
    return figure, axes


def _plain(text: str) -> str:
    """`text` shortened, without control characters, and with the dollars escaped that matplotlib would read as formulas."""
    text = visible_name(text)
    short = text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 1] + "…"
    return short.replace("$", r"\$")


def _title(what: str, results: Sequence[RunResult], statistic: str) -> str:
    counts = sorted({len(result.seeds) for result in results})
    return what if counts == [1] else f"{what}, {statistic} over {' or '.join(map(str, counts))} seeds"


def _ticks(values: Sequence[int]) -> list[int]:
    """At most MOST_TICKS of the values, evenly chosen, always with the last one."""
    step = -(-len(values) // MOST_TICKS)
    return list(values[::-1][::step][::-1])


def _finish_curve(axes: Axes, results: Sequence[RunResult], title: str, theme: Theme) -> None:
    """Ticks at the ends of tasks, light horizontal rules, words."""
    longest = max((result.seeds[0].classes_seen for result in results), key=len)
    axes.set_xticks(_ticks(longest))
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


def _finish_matrix(figure: Figure, axes: Axes, image: AxesImage, tasks: int, theme: Theme) -> None:
    """Task numbers from 1, a colour scale, words."""
    numbers = _ticks(range(1, tasks + 1))
    axes.set_xticks([n - 1 for n in numbers], [str(n) for n in numbers])
    axes.set_yticks([n - 1 for n in numbers], [str(n) for n in numbers])
    axes.set_xlabel("test images of task", fontsize=TEXT, color=theme.text, labelpad=6)
    axes.set_ylabel("after learning task", fontsize=TEXT, color=theme.text, labelpad=6)
    scale = figure.colorbar(image, ax=axes, shrink=0.85, aspect=28, pad=0.03)
    scale.outline.set_visible(False)
    scale.ax.tick_params(length=0, labelsize=SMALL, labelcolor=theme.text)


def _ink_on(colour: np.ndarray) -> str:
    """Black or white, whichever is easier to read on `colour` (red, green, blue in [0, 1]; weights of ITU-R BT.709)."""
    linear = np.asarray(colour) ** 2.2
    return "#10131a" if float(linear @ [0.2126, 0.7152, 0.0722]) > 0.18 else "#ffffff"
