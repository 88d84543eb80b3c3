"""The page of an analysis: `analysis.html`, self-contained, and its pictures `analysis_*.{png,svg,pdf}`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.files import write_atomic
from utils.report.analysis import Analysis, WorstClass
from utils.report.page import PAGES, Picture, write_picture
from utils.report.plots_analysis import (
    WORDS,
    cka_figure,
    frechet_figure,
    heads_figure,
    knowledge_figure,
    map_figure,
    staleness_figure,
)

ANALYSIS_PAGE = "analysis.html"


def write_analysis_page(found: Analysis, folder: Path) -> Path:
    """Write the pictures and the page into `folder`; returns the page's path."""
    drawn = {"knowledge": (knowledge_figure, knowledge_words(found)), "cka": (cka_figure, cka_words(found)),
             "map": (map_figure, map_words(found))}
    if _any(found.mean_cosine):
        drawn["staleness"] = (staleness_figure, staleness_words(found))
    if _any(found.frechet):
        drawn["frechet"] = (frechet_figure, frechet_words(found))
    if found.heads:
        drawn["heads"] = (heads_figure, heads_words(found))
    pictures: dict[str, Picture] = {name: write_picture(folder / f"analysis_{name}", draw(found), words)
                                    for name, (draw, words) in drawn.items()}
    text = PAGES.get_template("analysis.html.j2").render(
        title=f"Analysis of {found.title}", subtitle=f"{found.run}, seed {found.seed}, {len(found.class_names)} classes",
        note=found.note, pictures=pictures, knowledge=knowledge_table(found),
        method=found.map_method, kept=found.kept, worst=[_worst_row(one) for one in found.worst])
    return write_atomic(folder / ANALYSIS_PAGE, text)


def knowledge_table(found: Analysis) -> list[list[str]]:
    """Header and a row per state, with the gap between what a probe and the run's classifier get on the same images."""
    rows = [["State", *(f"{words} (%)" for words in WORDS.values()), "Gap"]]
    for n, state in enumerate(found.states):
        values = [getattr(found, name)[n] for name in WORDS]
        gap = None if None in values[2:] else values[2] - values[3]
        rows.append([state, *(_text(value) for value in (*values, gap))])
    return rows


def _worst_row(one: WorstClass) -> dict[str, Any]:
    """A lost class as the page shows it."""
    return {"name": one.name, "accuracy": f"{one.accuracy:.1f}", "examples": one.examples,
            "taken_for": ", ".join(f"{name} {share:.1f} %" for name, share in one.taken_for) or "-",
            "nearest": ", ".join(f"{'its own' if name == one.name else name} {distance:.2f}" for name, distance in one.nearest) or "-"}


def knowledge_words(found: Analysis) -> str:
    """The two ends of the lines."""
    return (f"A linear probe on all classes gets {_text(found.probe_all[0])} % from the pre-trained features and "
            f"{_text(found.probe_all[-1])} % from those after {found.states[-1]}; on the classes seen by then the probe gets "
            f"{_text(found.probe_seen[-1])} %, the run's classifier {_text(found.classifier_seen[-1])} %.")


def cka_words(found: Analysis) -> str:
    """The most changed block."""
    last = found.cka[-1]
    lowest = int(np.argmin(last))
    return f"After {found.states[-1]} the least like the pre-trained state is {found.blocks[lowest]}, CKA {last[lowest]:.2f}."


def staleness_words(found: Analysis) -> str:
    """The first task's classes at the end."""
    return (f"After {found.states[-1]} the {found.kept} means of the first task's classes have cosine "
            f"{_first_task(found, found.mean_cosine):.3f} with their means now.")


def frechet_words(found: Analysis) -> str:
    """The first task's classes at the end."""
    return (f"After {found.states[-1]} the {found.kept} Gaussians of the first task's classes are "
            f"{_first_task(found, found.frechet):.2f} of the class's own spread away from their Gaussians now.")


def map_words(found: Analysis) -> str:
    """What the panels show, and by what."""
    how = "UMAP" if found.map_method == "UMAP" else "principal components"
    return f"Test images by {how} of their features, in the states {', '.join(found.map)}: by task, and by class where they are few."


def _first_task(found: Analysis, table: Sequence[Sequence[float | None]]) -> float:
    """Mean of the last row over the first task's classes; nan where none is defined."""
    first = [value for value, task in zip(table[-1], found.task_of_class, strict=True) if task == 1 and value is not None]
    return float(np.mean(first)) if first else float("nan")


def _any(table: Sequence[Sequence[float | None]]) -> bool:
    return any(value is not None for row in table for value in row)


def heads_words(found: Analysis) -> str:
    """Shares of predictions of every head."""
    when = {"before": "Before alignment the", "after": "After alignment the" if "before" in found.heads else "The"}
    return " ".join(f"{when[which]} heads get {', '.join(f'{share:.1f}' for share in bias.share)} % of the predictions."
                    for which, bias in found.heads.items())


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
