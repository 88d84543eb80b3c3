"""What all pictures share: colours, an empty figure, words and ticks on it, and the files it is written as.

Drawn on matplotlib's Agg canvas through `Figure` objects: no global state, no display. matplotlib is imported when the first picture
is drawn: training needs none of it.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.report.results import RunResult
from utils.terminal import visible_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 200
TEXT, SMALL = 10.0, 9.0                             # points
LONGEST_LABEL = 34                                  # characters
MARGIN = 0.12                                       # inches around everything
WHITE = "#fdfdfd"                                   # on dark cells; another white than a page's, which turns dark
MOST_TICKS = 10                                     # on an axis before ticks are left out


@dataclass(frozen=True)
class Theme:
    """Colours of a picture; `lines` follows Okabe and Ito's palette, which colour-blind readers can tell apart."""

    background: str
    text: str
    faint: str
    other: str                                      # lines of a large comparison that are neither among the best nor chosen
    lines: tuple[str, ...]
    cells: tuple[str, ...]                          # of the matrix, from the lowest to the highest accuracy


LIGHT = Theme(
    background="#ffffff", text="#1f2430", faint="#d5d9e2", other="#7b8393",
    lines=("#0072B2", "#D55E00", "#009E73", "#C2629B", "#8A6D00", "#3FA0D8", "#555B66"),
    cells=("#f3f8fd", "#c6dbef", "#6baed6", "#2171b5", "#0b3a75"),
)
DARK = Theme(
    background="#1a1e27", text="#e6e8ee", faint="#3d4352", other="#8a92a3",
    lines=("#56B4E9", "#E69F00", "#2FC79A", "#E39BC4", "#F0E442", "#7C9DF2", "#B4BAC6"),
    cells=("#202836", "#1f3f66", "#2a6cab", "#69aee0", "#dcefff"),
)


def picture_links(name: str, words: str = "") -> list[tuple[str, str]]:
    """Words and file names, for the links of a page, of one picture in its three forms; the words are `name` by default."""
    return [(f"{words or name} ({suffix.upper()})", f"{name}.{suffix}") for suffix in ("png", "svg", "pdf")]


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG file's bytes; the same figure gives the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    return _printed(figure, FigureCanvasAgg(figure).print_png, metadata={"Software": None})


def svg_bytes(figure: Figure) -> bytes:
    """The figure as an SVG file's bytes, its letters as outlines; the same figure gives the same bytes."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    with rc_context({"svg.hashsalt": "slca", "svg.fonttype": "path"}):
        return _printed(figure, FigureCanvasSVG(figure).print_svg, metadata={"Date": None, "Creator": None})


def pdf_bytes(figure: Figure) -> bytes:
    """The figure as a PDF file's bytes, for papers; the same figure gives the same bytes."""
    from matplotlib.backends.backend_pdf import FigureCanvasPdf

    return _printed(figure, FigureCanvasPdf(figure).print_pdf, metadata={"CreationDate": None, "Creator": None, "Producer": None})


def _printed(figure: Figure, printer: Callable[..., object], metadata: dict[str, None]) -> bytes:
    buffer, dpi = io.BytesIO(), figure.dpi
    printer(buffer, metadata=metadata)
    figure.set_dpi(dpi)  # vector formats leave theirs, 72, behind, at which a PNG would be coarse
    return buffer.getvalue()


def freeze_layout(figure: Figure) -> None:
    """Keep the places that the first drawing found, which is most of its time, for the other files."""
    figure.set_layout_engine("none")


def following_reader(svg: bytes) -> bytes:
    """An SVG drawn in LIGHT whose background, words and lines take DARK's colours where the reader's setting is dark."""
    pairs = [("background", LIGHT.background, DARK.background), ("text", LIGHT.text, DARK.text), ("faint", LIGHT.faint, DARK.faint),
             ("other", LIGHT.other, DARK.other),
             *((f"line{n}", light, dark) for n, (light, dark) in enumerate(zip(LIGHT.lines, DARK.lines, strict=True)))]
    text = svg.decode()
    for name, light, _ in pairs:
        text = text.replace(light.lower(), f"var(--{name})")
    light_colours, dark_colours = (";".join(f"--{pair[0]}:{pair[which]}" for pair in pairs) for which in (1, 2))
    style = f"<style>svg{{{light_colours}}}@media (prefers-color-scheme: dark){{svg{{{dark_colours}}}}}</style>"
    return text.replace("<defs>", f"{style}<defs>", 1).encode()


def import_matplotlib() -> None:
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


def new_figure(width: float, height: float, theme: Theme, *, rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    """An empty figure of `width` x `height` inches with bare axes; an array of them where there are several."""
    import_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    margins = ConstrainedLayoutEngine(w_pad=MARGIN, h_pad=MARGIN)
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=theme.background, layout=margins)
    axes = figure.subplots(rows, columns, subplot_kw={"facecolor": theme.background})
    for panel in np.atleast_1d(axes).flat:
        panel.spines[:].set_visible(False)
        panel.tick_params(length=0, labelsize=SMALL, labelcolor=theme.text)
    return figure, axes


def plain(text: str) -> str:
    """`text` shortened, without control characters, and with the dollars escaped that matplotlib would read as formulas."""
    text = visible_name(text)
    short = text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 1] + "…"
    return short.replace("$", r"\$")


def seeds_title(what: str, results: Sequence[RunResult], statistic: str) -> str:
    counts = sorted({len(result.seeds) for result in results})
    return what if counts == [1] else f"{what}, {statistic} over {' or '.join(map(str, counts))} seeds"


def few_ticks(values: Sequence[int]) -> list[int]:
    """At most MOST_TICKS of the values, evenly chosen, always with the last one."""
    step = -(-len(values) // MOST_TICKS)
    return list(values[::-1][::step][::-1])


def ink_on(colour: np.ndarray) -> str:
    """Black or white, whichever is easier to read on `colour` (red, green, blue in [0, 1]; weights of ITU-R BT.709)."""
    linear = np.asarray(colour) ** 2.2
    return "#10131a" if float(linear @ [0.2126, 0.7152, 0.0722]) > 0.18 else WHITE
