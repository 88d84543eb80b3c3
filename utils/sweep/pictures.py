"""Optuna's pictures of a sweep: parallel coordinates (each line is a point) and how much each setting mattered."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.files import write_atomic
from utils.report.drawing import DPI, import_matplotlib
from utils.sweep.study import optuna_module

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TARGET = "Validation accuracy (%)"
BEHIND = "#d5d9e2"         # the palest of Optuna's lines show on it
WIDTH, HEIGHT = 9.0, 5.0   # inches
LETTER = 0.075             # inches, of Optuna's words


def write_pictures(folder: Path, study: Any) -> list[Path]:
    """Draw what there is to draw, as PNG, SVG and PDF; returns the PNGs. One value, or none that differs, gives no picture."""
    optuna = optuna_module()
    import_matplotlib()
    from matplotlib import pyplot

    pyplot.switch_backend("Agg")  # Optuna draws with pyplot, which would look for a screen
    done = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    if len({trial.value for trial in done}) < 2 or not any(trial.params for trial in done):
        return []
    drawn = optuna.visualization.matplotlib
    pictures = {"parallel_coordinates": drawn.plot_parallel_coordinate, "importances": drawn.plot_param_importances}
    written = []
    for name, draw in pictures.items():
        axes = draw(study, target_name=TARGET)
        axes.set_facecolor(BEHIND)
        axes.figure.set_size_inches(WIDTH, HEIGHT)
        _move_colour_bar(axes.figure, max(len(str(value)) for trial in done for value in trial.params.values()))
        written += [_write(axes.figure, folder / f"{name}.{kind}") for kind in ("png", "svg", "pdf")][:1]
        pyplot.close(axes.figure)
    return written


def _move_colour_bar(figure: Figure, longest: int) -> None:
    """Make room for the values of the last setting, the longest of which has so many letters."""
    for axes in figure.axes:
        if axes.get_label() == "<colorbar>":
            box = axes.get_position()
            axes.set_position([box.x0 + LETTER / WIDTH * longest, box.y0, box.width, box.height])


def _write(figure: Figure, file: Path) -> Path:
    """Save a figure, with all that Optuna writes beyond its edges."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=file.suffix[1:], dpi=DPI, bbox_inches="tight")
    return write_atomic(file, buffer.getvalue())
