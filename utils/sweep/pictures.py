"""Optuna's pictures of a sweep: parallel coordinates (each line is a point) and how much each setting mattered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils.report.page import write_picture
from utils.sweep.study import optuna_module

TARGET = "Validation accuracy (%)"


def write_pictures(folder: Path, study: Any) -> list[Path]:
    """Draw what there is to draw, as PNG, SVG and PDF; returns the PNGs. One value, or none that differs, gives no picture."""
    optuna = optuna_module()
    import matplotlib

    matplotlib.use("Agg")  # Optuna draws with pyplot, which would look for a screen
    from matplotlib import pyplot

    done = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    if len({trial.value for trial in done}) < 2 or not any(trial.params for trial in done):
        return []
    drawn = optuna.visualization.matplotlib
    pictures = {"parallel_coordinates": drawn.plot_parallel_coordinate, "importances": drawn.plot_param_importances}
    written = []
    for name, draw in pictures.items():
        figure = draw(study, target_name=TARGET).figure
        write_picture(folder / name, figure, f"{name.replace('_', ' ')} of the sweep")
        pyplot.close(figure)
        written.append(folder / f"{name}.png")
    return written
