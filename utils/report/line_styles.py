"""How the lines of several runs are told apart: colour, and for colour-blind readers and grey paper dash and marker too.

A few runs have a colour each. Of many the best five and those that the reader chose are coloured, the others are grey.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from utils.errors import UserError
from utils.report.drawing import LIGHT
from utils.report.results import RunResult

DASHES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))  # matplotlib's form: offset, then lines and gaps in line widths
MARKERS = ("o", "s", "^", "D", "v")                  # another one as long as dashes repeat
MOST_COLOURED = len(LIGHT.lines)
MOST_BANDS = 7                                       # lines with a band of one std before bands hide the lines
BEST = 5                                             # coloured among many


@dataclass(frozen=True)
class LineStyle:
    """How one run is drawn."""

    colour: int | None                               # place in Theme.lines; None: grey
    dash: str | tuple[int, tuple[float, ...]]
    marker: str


def line_styles(results: Sequence[RunResult], labels: Sequence[str], chosen: Sequence[str] = ()) -> list[LineStyle]:
    """A style for each run; no two of the first 20 alike in dash and marker, where the coloured ones count first."""
    many = len(results) > MOST_COLOURED
    coloured = _best_and_chosen(results, labels, chosen) if many else list(range(len(results)))
    colours = MOST_COLOURED - 1 if many else MOST_COLOURED          # the last one is nearly grey
    order = [*coloured, *(number for number in range(len(results)) if number not in coloured)]
    return [LineStyle(place % colours if place < len(coloured) else None, DASHES[place % len(DASHES)], MARKERS[place % len(MARKERS)])
            for place in map(order.index, range(len(results)))]


def _best_and_chosen(results: Sequence[RunResult], labels: Sequence[str], chosen: Sequence[str]) -> list[int]:
    """Places of the continual runs with the highest last accuracy, then of the chosen ones."""
    known = {number: mean for number, result in enumerate(results)
             if result.num_tasks > 1 and (mean := result.summary["last"]["mean"]) is not None}
    best = sorted(known, key=lambda number: -known[number])[:BEST]
    return list(dict.fromkeys([*best, *map(list(labels).index, chosen)]))


def check_chosen(chosen: Sequence[str], labels: Sequence[str]) -> None:
    """Raises UserError where a name is not one of the labels."""
    for name in chosen:
        if name not in labels:
            raise UserError(f"compare: --highlight got {name!r}, allowed: {', '.join(labels)}")
