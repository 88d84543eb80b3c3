"""Accuracy over the classes seen as a page shows it: an SVG of its own with a list of the lines beside it.

Without script it is a picture whose points have titles; `templates/curves.js` adds what a pointer over a point tells, and lines that
are hidden or lit from the list. The list is ranked by the last accuracy and draws it as a dot with its spread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor

import numpy as np

from utils.report.drawing import few_ticks
from utils.report.line_styles import DASHES, MARKERS, MOST_BANDS, MOST_COLOURED, LineStyle, line_styles
from utils.report.results import RunResult, Statistic, statistic
from utils.report.tables import mean_std_text

WIDTH = 720                                          # of the picture, in its own units
HEIGHT, HEIGHT_OF_MANY = 430, 620
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 34, 58            # around the axes; room for letters that narrow screens show larger
STRIP = 120                                          # width of a dot with its spread in the list
STEPS = (1, 2, 5, 10, 20, 25)                        # between rules, in percent
MOST_RULES = 7
# Outlines of markers around their middle; matplotlib's letters.
SHAPES = {"o": "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0", "s": "m-3.5-3.5h7v7h-7z", "^": "m0-4.6l4.4 8h-8.8z", "D": "m0-5l5 5l-5 5l-5-5z",
          "v": "m0 4.6l4.4-8h-8.8z"}


@dataclass(frozen=True)
class Point:
    """One measured accuracy."""

    x: float
    y: float
    words: str                                       # "SLCA, after task 2 (4 classes): 91.53 ± 0.28 %"
    marked: bool = True                              # of many points only some have a marker


@dataclass(frozen=True)
class Line:
    """One run, or one of its seeds."""

    number: int                                      # joins the line with its place in the list
    label: str
    colour: str                                      # "c0", or "grey": a class of the page's style
    dashes: str                                      # of SVG; "" for a solid line
    shape: str                                       # an outline of SHAPES
    points: list[Point]
    band: str                                        # outline of mean ± std; "" for none
    last: str                                        # "79.72 ± 0.54"
    dot: float | None = None                         # place of the last accuracy in the list's strip, and of its spread
    low: float | None = None
    high: float | None = None

    @property
    def path(self) -> str:
        return "M" + "L".join(f"{point.x:g} {point.y:g}" for point in self.points) if self.points else ""


@dataclass(frozen=True)
class LiveCurves:
    """What the macro `curves` of `templates/macros.html.j2` draws."""

    words: str                                       # for who cannot see it
    lines: list[Line]                                # as they are listed: the highest last accuracy first
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    scale: tuple[str, str]                           # percent at the ends of the strips
    spread: bool                                     # whether some last accuracy has a standard deviation
    height: int                                      # of the picture
    bottom: int                                      # what the axes stand on
    width: int = WIDTH
    left: int = LEFT                                 # where rules begin and end
    right: int = WIDTH - RIGHT
    strip: int = STRIP


@dataclass(frozen=True)
class _Series:
    """A line's figures: (T,) classes seen, and the accuracies' mean and std over the seeds."""

    label: str
    style: LineStyle
    seen: list[int]
    figures: list[Statistic]


def live_curves(results: Sequence[RunResult], labels: Sequence[str], words: str, chosen: Sequence[str] = ()) -> LiveCurves:
    """Mean accuracy of each run over the classes seen; a run of one task is a level across the picture."""
    styles = line_styles(results, labels, chosen)
    series = [_Series(label, style, result.seeds[0].classes_seen, _means([seed.top1_curve for seed in result.seeds]))
              for result, label, style in zip(results, labels, styles, strict=True)]
    return _laid_out(series, words, banded=len(series) <= MOST_BANDS)


def live_seeds(result: RunResult, words: str) -> LiveCurves:
    """The mean of one run, and each of its seeds in grey."""
    means = _Series(result.name, line_styles([result], [result.name])[0], result.seeds[0].classes_seen,
                    _means([seed.top1_curve for seed in result.seeds]))
    seeds = [_Series(f"seed {seed.seed}", LineStyle(None, DASHES[number % len(DASHES)], MARKERS[number % len(MARKERS)]),
                     seed.classes_seen, _means([seed.top1_curve]))
             for number, seed in enumerate(result.seeds, start=1)]
    return _laid_out([means, *(seeds if len(seeds) > 1 else [])], words, banded=True, ranked=False)


def _means(curves: Sequence[Sequence[float | None]]) -> list[Statistic]:
    """(T,) of S curves of as many tasks as the shortest has; nan, where there was no test image, is not defined."""
    defined = [[None if value is None or np.isnan(value) else float(value) for value in curve] for curve in curves]
    return [statistic(values) for values in zip(*defined, strict=False)]


@dataclass(frozen=True)
class _Scale:
    """Where a figure is drawn: `start` is the place of `low`, `end` that of `high`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return round(self.start + (self.end - self.start) * (value - self.low) / max(self.high - self.low, 1e-9), 1)


def _laid_out(series: Sequence[_Series], words: str, banded: bool, ranked: bool = True) -> LiveCurves:
    """Places of everything in the picture and in the strips; the lines as they are listed, `ranked` or in the order of `series`."""
    longest, height = max((one.seen for one in series), key=len), HEIGHT if len(series) <= MOST_COLOURED else HEIGHT_OF_MANY
    classes = (0 if len(longest) == 1 else longest[0], longest[-1])
    x = _Scale(*classes, LEFT + 8, WIDTH - RIGHT - 8)
    y = _Scale(*_extent([end for one in series for figure in one.figures for end in _ends(figure, banded)]), height - BOTTOM, TOP)
    strip = _Scale(*_extent([end for one in series for end in _ends(one.figures[-1], True)]), 6, STRIP - 6)
    lines = [_line(number, one, classes if len(one.seen) == 1 < len(longest) else None, x, y, strip, banded)
             for number, one in enumerate(series)]

    def rank(line: Line) -> tuple[bool, float]:
        mean = series[line.number].figures[-1]["mean"]
        return mean is None, -(mean or 0.0)
    return LiveCurves(words, sorted(lines, key=rank) if ranked else lines, [(x(tick), str(tick)) for tick in few_ticks(longest)],
                      [(y(tick), str(tick)) for tick in _rules(y.low, y.high)], (f"{strip.low:.0f}", f"{strip.high:.0f}"),
                      any(one.figures[-1]["std"] is not None for one in series), height, height - BOTTOM)


def _line(number: int, one: _Series, across: tuple[int, int] | None, x: _Scale, y: _Scale, strip: _Scale, banded: bool) -> Line:
    """A run's line; `across` is where the level of a run of one task begins and ends."""
    seen, figures = (across, one.figures * 2) if across else (one.seen, one.figures)
    shown = few_ticks(range(len(seen)))
    points = []
    for place, (classes, figure) in enumerate(zip(seen, figures, strict=False)):
        if figure["mean"] is not None:
            when = f"after task {1 if across else place + 1} ({one.seen[0] if across else classes} classes)"
            points.append(Point(x(classes), y(figure["mean"]), f"{one.label}, {when}: {mean_std_text(figure)} %", place in shown))
    ends = [(x(classes), *map(y, _ends(figure, True))) for classes, figure in zip(seen, figures, strict=False)
            if banded and figure["std"] is not None]
    edge = [*((place, upper) for place, _, upper in ends), *((place, lower) for place, lower, _ in reversed(ends))]
    low, high = [strip(end) for end in _ends(one.figures[-1], True)] or (None, None)
    return Line(
        number=number, label=one.label, colour="grey" if one.style.colour is None else f"c{one.style.colour}",
        dashes="12 7" if across else _dashes(one.style), shape=SHAPES[one.style.marker], points=points,
        band="M" + "L".join(f"{a:g} {b:g}" for a, b in edge) + "Z" if edge else "", last=mean_std_text(one.figures[-1]),
        dot=None if one.figures[-1]["mean"] is None else strip(one.figures[-1]["mean"]), low=low, high=high)


def _ends(figure: Statistic, spread: bool) -> list[float]:
    """Mean - std and mean + std within [0, 100], both the mean where there is no spread to show; nothing where undefined."""
    if figure["mean"] is None:
        return []
    std = (figure["std"] or 0.0) if spread else 0.0
    return [max(0.0, figure["mean"] - std), min(100.0, figure["mean"] + std)]


def _extent(values: Sequence[float]) -> tuple[float, float]:
    """Whole percents around the values, within [0, 100]."""
    return (max(0.0, floor(min(values) - 0.5)), min(100.0, ceil(max(values) + 0.5))) if values else (0.0, 100.0)


def _rules(low: float, high: float) -> list[int]:
    """Percents with a rule across the picture."""
    step = next((step for step in STEPS if (high - low) / step <= MOST_RULES), STEPS[-1])
    return [tick for tick in range(0, 101, step) if low <= tick <= high]


def _dashes(style: LineStyle) -> str:
    """SVG's form of a style's dashes, for lines 2 units wide."""
    return "" if isinstance(style.dash, str) else " ".join(f"{2 * length:g}" for length in style.dash[1])
