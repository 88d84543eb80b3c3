"""What a run's page shows beside accuracies: each class's fate, time and speed per task, staleness; and the words of its pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from utils.formulas.unknown import FIGURES
from utils.report.plots_measured import confusions, mean_confusion
from utils.report.result_rows import DIAGNOSTICS, class_figures
from utils.report.results import RunResult, statistic
from utils.report.tables import mean_std_text, seconds_text

CLASSES_SHOWN = 30  # on the page; results_tidy.csv has all
DIAGNOSTIC_WORDS = {"mean_cosine": "Cosine of old means with where the backbone moved them", "operator_distance": "|W - I| / |I|",
                    "share": "Share of the move that was deployed",
                    "taken_by_old": "Share of the new task's held-out images that old classes take"}


def class_table(result: RunResult) -> list[list[str]]:
    """Header and a row per class, the worst first: accuracy (%) when it was learned, after the last task, and the change.

    Mean ± std over the seeds, which learned the class in other tasks. Empty where results have no accuracies of classes.
    """
    names: dict[int, str] = {}
    learned: dict[int, list[float | None]] = {}  # by own label, one entry per seed
    last: dict[int, list[float | None]] = {}
    for number, seed in enumerate(result.seeds):
        for task in range(len(seed.task_sizes)):
            for label, name, accuracy in class_figures(result, seed, task):
                names[label] = name
                if len(learned.setdefault(label, [])) == number:
                    learned[label].append(accuracy)
                if task + 1 == len(seed.task_sizes):
                    last.setdefault(label, []).append(accuracy)
    rows = []
    for label, values in sorted(last.items(), key=lambda item: statistic(item[1])["mean"] or 0.0):
        change = [None if None in (new, old) else new - old for new, old in zip(values, learned[label], strict=True)]
        rows.append([names[label], *(mean_std_text(statistic(column), digits=1) for column in (learned[label], values, change))])
    return [["Class", "When learned (%)", "After the last task (%)", "Change"], *rows[:CLASSES_SHOWN]] if rows else []


def times_table(result: RunResult) -> list[list[str]]:
    """Header and a row per task: seconds of each stage and images per second of training, mean ± std over the seeds."""
    seeds = result.seeds
    if not all(seed.task_seconds for seed in seeds):
        return []
    stages = list(dict.fromkeys(stage for seed in seeds for seconds in seed.task_seconds for stage in seconds))
    rows = [["Task", *(stage.capitalize() for stage in stages), "Training images per second"]]
    for task in range(min(len(seed.task_seconds) for seed in seeds)):
        seconds = [seconds_text(statistic(seed.task_seconds[task].get(stage) for seed in seeds)) for stage in stages]
        speed = statistic(seed.images_per_second[task] if seed.task_images else None for seed in seeds)
        rows.append([str(task + 1), *seconds, mean_std_text(speed, digits=0)])
    return rows


def staleness_table(result: RunResult) -> list[list[str]]:
    """Header and a row per task: what methods that keep Gaussians measured of how far the backbone left them; empty for others."""
    names = [name for name in DIAGNOSTICS if any(name in measured for seed in result.seeds for measured in seed.diagnostics)]
    if not names:
        return []
    rows = [["After task", *(DIAGNOSTIC_WORDS[name] for name in names)]]
    for task in range(min(len(seed.diagnostics) for seed in result.seeds)):
        figures = [statistic(seed.diagnostics[task].get(name) for seed in result.seeds) for name in names]
        rows.append([str(task + 1), *(mean_std_text(figure, digits=3) for figure in figures)])
    return rows


def unknown_table(result: RunResult) -> list[list[str]]:
    """Header and a row per task: how well images of classes still to come are told (%), mean ± std over the seeds; empty where nowhere."""
    figures = [[values.get(name) for name in FIGURES] for seed in result.seeds for values in seed.unknown_curve]
    shown = [name for name, column in zip(FIGURES, zip(*figures, strict=True), strict=False) if any(v is not None for v in column)]
    if not shown:
        return []
    rows = [["After task", *(f"{figure.upper()}, {score} (%)" for figure, score in (name.split("_") for name in shown))]]
    for task in range(min(len(seed.unknown_curve) for seed in result.seeds) - 1):  # after the last one no class is still to come
        row = [statistic(seed.unknown_curve[task].get(name) for seed in result.seeds) for name in shown]
        rows.append([str(task + 1), *map(mean_std_text, row)])
    return rows


# Words for who cannot see a picture ----------------------------------------------------------------------------


def curve_words(labels: Sequence[str], results: Sequence[RunResult]) -> str:
    """The curves' last values."""
    return "Top-1 accuracy over the classes seen; after the last task " + ", ".join(
        f"{label} {mean_std_text(result.summary['last'], digits=1)} %" for label, result in zip(labels, results, strict=True))


def matrix_words(result: RunResult) -> str:
    """Each task's accuracy in the last row."""
    rows = [seed.accuracy_matrix[-1] for seed in result.seeds]
    tasks = range(min(map(len, rows)))
    return "Accuracy on each task's images after the last task: " + ", ".join(
        f"task {task + 1} {mean_std_text(statistic(row[task] for row in rows), digits=1)} %" for task in tasks)


def confusion_words(result: RunResult) -> str:
    """Which share of the images stays within its own task."""
    told = []
    for which in confusions(result):
        own = np.diag(mean_confusion(result, which))
        own = own[~np.isnan(own)]  # of tasks with test images
        share = f"{own.mean():.1f} %" if len(own) else "-"
        told.append(f"{which if which == 'before' else 'after'} alignment {share}" if len(confusions(result)) > 1 else share)
    return f"Images taken for a class of their own task, mean over the tasks: {', '.join(told)}"


def timeline_words(result: RunResult) -> str:
    """Seconds per stage of the first seed."""
    return "Seconds per stage: " + ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in result.seeds[0].stage_seconds.items())
