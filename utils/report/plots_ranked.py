"""Methods in order: `comparison_ranked` (each one's last accuracy as a dot with its spread) and `ranks` (a critical-difference picture)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from utils.report.drawing import LIGHT, SMALL, TEXT, Theme, new_figure, plain, seeds_title
from utils.report.line_styles import line_styles
from utils.report.results import RunResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW = 0.22                                           # inches of a method's line
GROUP_GAP = 0.34                                     # between bars of methods that do not differ, in heights of a method's line


def ranked_figure(results: Sequence[RunResult], labels: Sequence[str], theme: Theme = LIGHT, chosen: Sequence[str] = ()) -> Figure:
    """Last accuracy (%) of each run, the best on top: mean over seeds as a dot, mean ± std as a bar, in the colours of the curves."""
    known = sorted(((mean, result.summary["last"]["std"], label, style) for result, label, style
                    in zip(results, labels, line_styles(results, labels, chosen), strict=True)
                    if (mean := result.summary["last"]["mean"]) is not None), key=lambda one: one[0])
    figure, axes = new_figure(5.6, 1.1 + ROW * max(len(known), 2), theme)
    for row, (mean, std, _, style) in enumerate(known):
        colour = theme.other if style.colour is None else theme.lines[style.colour]
        axes.errorbar(mean, row, xerr=std, color=colour, marker=style.marker, markersize=6, elinewidth=1.8, capsize=0)
    axes.set_yticks(range(len(known)), [f"{plain(label)}  {mean:.1f}" for mean, _, label, _ in known])
    axes.set_ylim(-0.7, len(known) - 0.3)
    axes.grid(axis="both", color=theme.faint, linewidth=0.6)
    axes.set_axisbelow(True)
    title = seeds_title("Last accuracy (%)", results, "mean ± std")
    axes.set_title(title, loc="left", fontsize=TEXT, color=theme.text, pad=8)
    return figure


def critical_difference_figure(ranks: Sequence[float], labels: Sequence[str], difference: float, theme: Theme = LIGHT) -> Figure:
    """Average ranks on one axis, 1 to the left; a bar joins methods whose ranks lie less than the critical `difference` apart
    (Demsar, JMLR 2006, figure 1).
    """
    count = len(ranks)
    order = sorted(range(count), key=lambda number: ranks[number])
    groups = joined(sorted(ranks), difference)
    rows = (count + 1) // 2
    depth = 0.5 + GROUP_GAP * len(groups)                                           # of the bars, in lines
    figure, axes = new_figure(7.4, 1.2 + ROW * (rows + depth + 1), theme)
    axes.set_xlim(0.5 - 0.28 * count, count + 0.5 + 0.28 * count)
    axes.set_ylim(-(depth + rows + 0.3), 2.2)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.plot([1, count], [0, 0], color=theme.text, linewidth=1)
    for rank in range(1, count + 1):
        axes.plot([rank, rank], [0, 0.25], color=theme.text, linewidth=1)
        if count <= 12 or rank in (1, count) or rank % 5 == 0:
            axes.text(rank, 0.4, str(rank), ha="center", va="bottom", fontsize=SMALL, color=theme.text)
    axes.plot([1, min(1 + difference, count)], [1.75, 1.75], color=theme.text, linewidth=2.2)
    axes.text(min(1 + difference, count) + 0.02 * count, 1.75, f"critical difference {difference:.2f}", va="center", fontsize=SMALL,
              color=theme.text)
    for level, (first, last) in enumerate(groups):
        height = -0.35 - GROUP_GAP * level
        axes.plot([ranks[order[first]] - 0.04, ranks[order[last]] + 0.04], [height, height], color=theme.text, linewidth=3.2,
                  solid_capstyle="butt")
    for place, number in enumerate(order):
        _name(axes, ranks[number], f"{plain(labels[number])}  {ranks[number]:.2f}", place, rows, count, depth, theme)
    axes.set_title("Average rank, 1 is best; a bar joins methods that do not differ", loc="left", fontsize=TEXT, color=theme.text, pad=4)
    return figure


def joined(ranks: Sequence[float], difference: float) -> list[tuple[int, int]]:
    """First and last place of each largest group of ascending ranks that lie within `difference`, of two or more methods."""
    groups: list[tuple[int, int]] = []
    for first, rank in enumerate(ranks):
        last = max(place for place, other in enumerate(ranks) if other - rank < difference)
        if last > first and (not groups or last > groups[-1][1]):
            groups.append((first, last))
    return groups


def _name(axes: Axes, rank: float, text: str, place: int, rows: int, count: int, depth: float, theme: Theme) -> None:
    """A method's name beside the axis, the better half to the left, with a line to its rank."""
    left = place < rows
    height = -(depth + (place if left else count - 1 - place) + 0.2)
    edge = 0.9 if left else count + 0.1
    axes.plot([rank, rank, edge], [0, height, height], color=theme.other, linewidth=0.9)
    axes.text(edge + (-0.05 if left else 0.05), height, text, ha="right" if left else "left", va="center", fontsize=SMALL, color=theme.text)
