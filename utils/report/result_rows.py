"""The tables of a run: `results.csv` has a row per seed and task, `results_tidy.csv` a row per number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from utils.formulas import metrics
from utils.formulas.diagnosis import shares
from utils.formulas.unknown import FIGURES

if TYPE_CHECKING:
    from utils.report.results import RunResult, SeedResult

# of methods that keep Gaussians: how stale their statistics were, and who takes the new task's held-out images
DIAGNOSTICS = ("mean_cosine", "operator_distance", "share", "taken_by_old")
MEMORY_KINDS = ("images", "features", "statistics", "parameters")   # of what a learner keeps, in bytes


def class_name(result: RunResult, label: int) -> str:
    """The name of a class by the data set's own label; the label where it has none."""
    return result.class_names[label] if 0 <= label < len(result.class_names) else str(label)


def wide_rows(result: RunResult) -> list[dict[str, Any]]:
    """One row per seed and task: everything that was measured after that task."""
    rows, stages = [], list(dict.fromkeys(stage for seed in result.seeds for seconds in seed.task_seconds for stage in seconds))
    for seed in result.seeds:
        forgetting, transfer = metrics.forgetting_curve(seed.accuracy_matrix), metrics.backward_transfer_curve(seed.accuracy_matrix)
        for t, seen in enumerate(seed.classes_seen):
            rows.append({
                "seed": seed.seed, "task": t + 1, "classes_seen": seen,
                "top1": seed.top1_curve[t], "top5": seed.top5_curve[t], "task_il": seed.task_il_curve[t],
                "old": seed.grouped[t].get("old"), "new": seed.grouped[t].get("new"),
                "average_incremental": metrics.average_incremental(seed.top1_curve[: t + 1]),
                "forgetting": forgetting[t], "backward_transfer": transfer[t],
                **({"harmonic": seed.harmonic_curve[t]} if seed.harmonic_curve else {}),  # of few-shot runs
                **{f"memory_{kind}": seed.memory_curve[t].get(kind) if seed.memory_curve else None for kind in MEMORY_KINDS},
                **{name: seed.diagnostics[t].get(name) if seed.diagnostics else None for name in DIAGNOSTICS},
                "calibration_error": _at(seed.calibration_curve, t), "uncalibrated_error": _at(seed.uncalibrated_curve, t),
                **{f"unknown_{name}": (_at(seed.unknown_curve, t) or {}).get(name) for name in FIGURES},
                "old_as_new": _at(seed.old_as_new_curve, t), "new_as_old": _at(seed.new_as_old_curve, t),
                "images_per_second": _at(seed.images_per_second, t),
                **{f"seconds_{stage}": (_at(seed.task_seconds, t) or {}).get(stage) for stage in stages},
            })
    return rows


def tidy_rows(result: RunResult) -> list[dict[str, Any]]:
    """One row per number: (seed, after which task, metric, on which images, percent)."""
    rows = []
    for seed in result.seeds:
        for t in range(len(seed.task_sizes)):
            figures: list[tuple[str, str, float | None]] = [
                ("top1", "all", seed.top1_curve[t]),
                ("top5", "all", seed.top5_curve[t]),
                ("task_il", "all", seed.task_il_curve[t]),
            ]
            figures += [("top1", f"task {i + 1}", seed.accuracy_matrix[t][i]) for i in range(t + 1)]
            figures += [("top1", f"classes {name}", value) for name, value in seed.grouped[t].items()]
            figures += [("top1", f"class {name}", value) for _, name, value in class_figures(result, seed, t)]
            figures += [(name, "all", curve[t]) for name, curve in (("calibration_error", seed.calibration_curve),
                                                                    ("uncalibrated_error", seed.uncalibrated_curve)) if curve]
            figures += [(name, "classes to come", (_at(seed.unknown_curve, t) or {}).get(name)) for name in FIGURES if seed.unknown_curve]
            figures += [("harmonic", "all", curve[t]) for curve in [seed.harmonic_curve] if curve]
            figures += [("anytime", f"after {point['images']} images", point["accuracy"]) for point in seed.anytime
                        if point["task"] == t + 1]
            if t + 1 == len(seed.task_sizes):
                figures += _confusion_figures(seed)
            rows += [
                {"seed": seed.seed, "task": t + 1, "metric": metric, "images": images, "percent": value}
                for metric, images, value in figures
            ]
    return rows


def class_figures(result: RunResult, seed: SeedResult, task: int) -> list[tuple[int, str, float | None]]:
    """Own label, name and accuracy (%) of every class seen after `task`, from 0, in the order of learning."""
    accuracies = seed.class_accuracies[task] if seed.class_accuracies else []
    labels = seed.class_order[: len(accuracies)]
    names = [class_name(result, label) for label in labels]
    if result.config.get("scenario") == "domain":  # a class has a name for each domain, "sketch/cat"
        names = [name.partition("/")[2] or name for name in names]
    return list(zip(labels, names, accuracies, strict=True))


def _confusion_figures(seed: SeedResult) -> list[tuple[str, str, float | None]]:
    """After the last task: which share of each task's images is taken for a class of which task."""
    return [(f"taken_for_task_{j + 1}" + ("_before_alignment" if which == "before" else ""), f"task {i + 1}", share)
            for which, table in seed.confusion.items() for i, row in enumerate(shares(table)) for j, share in enumerate(row)]


def _at(curve: Sequence[Any], task: int) -> Any:
    """The curve's entry; None where an older version of the program wrote no curve."""
    return curve[task] if curve else None
