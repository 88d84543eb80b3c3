"""The report of a run: `report.html`, one page that needs no other file, and the pictures `curve.png` and `matrix.png`; both,
`confusion` and `timeline` are there as SVG and PDF too.

The page is filled by jinja2 with autoescape on, so a class name, a file name or a config's text is shown as it
is and never becomes markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from utils.files import write_atomic
from utils.report.drawing import DARK, LIGHT, following_reader, freeze_layout, pdf_bytes, picture_links, png_bytes, svg_bytes
from utils.report.live_curves import live_seeds
from utils.report.page_measured import (
    class_table,
    confusion_words,
    curve_words,
    matrix_words,
    staleness_table,
    timeline_words,
    times_table,
    unknown_table,
)
from utils.report.plots import curve_figure, matrix_figure
from utils.report.plots_measured import confusion_figure, confusions, timeline_figure
from utils.report.published import Published, published_beside
from utils.report.result_rows import class_name
from utils.report.results import HEADLINES, RunResult, SeedResult, statistic
from utils.report.tables import SPREAD, bytes_text, count_text, headline_rows, mean_std_text, seconds_text, stream_text
from utils.run.runs import read_status

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = ("curve.png", "matrix.png", "report.html")
FILES = [("JSON", "results.json"), ("CSV", "results.csv"), ("every number (CSV)", "results_tidy.csv"),
         *picture_links("curve"), *picture_links("matrix")]
TILES = ("last", "average_incremental", "forgetting", "backward_transfer")
PAGES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined,
    trim_blocks=True, lstrip_blocks=True,
)
# Sorts tables, and what a pointer does on curves; nothing else may run in a page.
SCRIPT = "".join((Path(__file__).parent / "templates" / name).read_text(encoding="utf-8") for name in ("sort.js", "curves.js"))
PAGES.globals |= {"light": LIGHT, "dark": DARK, "script": Markup(SCRIPT),
                  "script_sha256": base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()}


@dataclass(frozen=True)
class Picture:
    """One picture in a page."""

    svg: str                # base64
    words: str              # for readers who cannot see it
    width: int              # of the page, in pixels


def write_report(result: RunResult, folder: Path | str) -> Path:
    """Write the pictures and `report.html` into `folder`; returns the page's path."""
    folder = Path(folder)
    pictures = {name: write_picture(folder / name, draw(), words, png=f"{name}.png" in PARTS)
                for name, (draw, words) in pictures_of(result).items()}
    return write_atomic(folder / "report.html", report_page(result, pictures, run=run_facts(folder)))


def pictures_of(result: RunResult) -> dict[str, tuple[Callable[[], Figure], str]]:
    """How each picture of a run is drawn, and its words; results of older versions have no confusion and no timeline."""
    pictures = {"curve": (lambda: curve_figure([result]), curve_words([result.name], [result])),
                "matrix": (lambda: matrix_figure(result), matrix_words(result))}
    if confusions(result) and result.num_tasks > 1:
        pictures["confusion"] = (lambda: confusion_figure(result), confusion_words(result))
    if result.seeds[0].timeline:
        pictures["timeline"] = (lambda: timeline_figure(result), timeline_words(result))
    return pictures


def report_is_there(folder: Path | str) -> bool:
    """Whether `write_report` wrote all its files, and not before the results that they show."""
    folder = Path(folder)
    try:
        results = (folder / "results.json").stat().st_mtime_ns
        return all((folder / name).stat().st_mtime_ns >= results for name in PARTS)
    except OSError:
        return False


def run_facts(folder: Path) -> list[tuple[str, str]]:
    """Which run a page is about: its folder, when it started, the command that started it; nothing without a run.json."""
    status = read_status(folder)
    facts = [("Run folder", str(folder)), ("Started", status.get("started")), ("Command", status.get("command"))] if status else []
    return [(name, str(value)) for name, value in facts if value]


def write_picture(path: Path, figure: Figure, words: str, png: bool = True) -> Picture:
    """Write a figure as `path`.svg and .pdf, and .png too unless a page alone shows it; returns it as a page shows it.

    Args:
        path: without suffix; words: what who cannot see it is told.
    """
    svg = svg_bytes(figure)
    freeze_layout(figure)
    write_atomic(path.with_name(f"{path.name}.svg"), svg)
    write_atomic(path.with_name(f"{path.name}.pdf"), pdf_bytes(figure))
    if png:
        write_atomic(path.with_name(f"{path.name}.png"), png_bytes(figure))
    css_width = int(figure.get_size_inches()[0] * 96)
    return Picture(base64.b64encode(following_reader(svg)).decode(), words, css_width)


def report_page(result: RunResult, pictures: Mapping[str, Picture], run: Sequence[tuple[str, str]] = ()) -> str:
    """The run's page as HTML text; `pictures` by the names of `pictures_of`, `run` are names and values that say which run it is."""
    reference = published_beside(result)
    return PAGES.get_template("report.html.j2").render(
        title=f"{result.name} on {result.dataset_words}",
        subtitle=_subtitle(result),
        tiles=_tiles(result, reference),
        pictures=pictures,
        live=live_seeds(result, curve_words([result.name], [result])),
        files=FILES,
        classes=class_table(result),
        times=times_table(result),
        staleness=staleness_table(result),
        unknown=unknown_table(result),
        headlines=headline_rows(result, reference, most_seeds=len(result.seeds)),
        paper=reference.words if reference else "",
        spread=SPREAD if len(result.seeds) > 1 else "",
        run=run,
        after_tasks=_after_tasks(result),
        cost=_cost(result),
        environment=_pairs({name: "none" if value is None else value for name, value in result.environment.items()}),
        config=_pairs(result.config),
        streams=[(seed.seed, _stream(result, seed)) for seed in result.seeds],
    )


def _subtitle(result: RunResult) -> str:
    memory = "rehearsal-free" if result.rehearsal_free else "rehearses stored images"
    return f"{stream_text(result)} · {result.backbone} · {memory}"


def _tiles(result: RunResult, reference: Published | None) -> list[dict[str, str]]:
    """The large figures at the top: what, how much (%), and the paper's figure under it."""
    tiles = []
    for key in TILES:
        paper = reference.figures.get(key) if reference else None
        below = f"% · paper {mean_std_text(paper)}" if paper else "%"
        tiles.append({"label": HEADLINES[key], "value": mean_std_text(result.shown(key)), "below": below})
    return tiles


def _after_tasks(result: RunResult) -> list[list[str]]:
    """A row per task: classes seen and accuracies (%), mean ± std over the seeds."""
    accuracies = ("Top-1", "Top-5", "Task-incremental", "Old classes", "New classes")
    measured = {"Old taken for new": "old_as_new_curve", "New taken for old": "new_as_old_curve",
                "Calibration error": "calibration_curve", "Calibration error before the temperature": "uncalibrated_curve",
                "Harmonic": "harmonic_curve"}
    measured = {words: name for words, name in measured.items() if all(getattr(seed, name) for seed in result.seeds)
                and (name != "uncalibrated_curve" or any(value is not None for seed in result.seeds for value in seed.uncalibrated_curve))}
    rows = [["After task", "Classes seen", *(f"{name} (%)" for name in (*accuracies, *measured))]]
    for t, seen in enumerate(result.seeds[0].classes_seen):
        columns: list[list[float | None]] = [
            [seed.top1_curve[t] for seed in result.seeds],
            [seed.top5_curve[t] for seed in result.seeds],
            [seed.task_il_curve[t] for seed in result.seeds],
            [seed.grouped[t].get("old") for seed in result.seeds],
            [seed.grouped[t].get("new") for seed in result.seeds],
            *([getattr(seed, name)[t] for seed in result.seeds] for name in measured.values()),
        ]
        rows.append([str(t + 1), str(seen), *(mean_std_text(statistic(column)) for column in columns)])
    return rows


def _cost(result: RunResult) -> list[tuple[str, str]]:
    """Time, memory and parameters: mean ± std over the seeds, or the first seed's where all are alike."""
    first = result.seeds[0]
    stages = [
        (f"Time: {stage}", seconds_text(statistic(seed.stage_seconds.get(stage) for seed in result.seeds)))
        for stage in first.stage_seconds
    ]
    peak = statistic(seed.peak_memory_mb for seed in result.seeds)["mean"]
    parameters = [(f"Parameters: {name.replace('_', ', ')}", count_text(n)) for name, n in first.parameters.items()]
    kept = [(f"Kept after the last task: {name}", bytes_text(n)) for name, n in first.memory_bytes.items()]
    return [*stages, ("Peak memory", "-" if peak is None else f"{peak:,.0f} MB"), *parameters, *kept]


def _stream(result: RunResult, seed: SeedResult) -> list[tuple[str, str]]:
    """Each task's classes by name (by number where the names are not known), in the order of learning."""
    names = [class_name(result, label) for label in seed.class_order]
    ends = list(accumulate(seed.task_sizes))
    return [
        (f"Task {t + 1}", ", ".join(names[end - size : end]))
        for t, (size, end) in enumerate(zip(seed.task_sizes, ends, strict=True))
    ]


def _pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values as text: JSON, without the quotes around a plain string."""
    return [
        (name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
        for name, value in values.items()
    ]
