"""Made-up results with the shape of real ones, for the tests of everything that shows results."""

from __future__ import annotations

from typing import Any

import numpy as np

from utils.formulas import metrics
from utils.formulas.unknown import FIGURES
from utils.report.results import RunResult, SeedResult


def make_seed(seed: int, task_sizes: list[int], drop: float = 4.0, first: float = 97.0) -> SeedResult:
    """A seed whose accuracy on a task starts at `first` and loses about `drop` points with every later task."""
    rng = np.random.default_rng(seed)
    tasks, classes = len(task_sizes), sum(task_sizes)
    matrix: list[list[float | None]] = [
        [float(first - drop * (t - i) - 2 * rng.random()) if i <= t else None for i in range(tasks)]
        for t in range(tasks)
    ]
    sizes = np.array(task_sizes)
    curve = [float(np.average(np.array(matrix[t][: t + 1], float), weights=sizes[: t + 1])) for t in range(tasks)]
    return SeedResult(
        seed=seed,
        class_order=np.random.default_rng([seed, 1]).permutation(classes).tolist(),
        task_sizes=task_sizes,
        top1_curve=curve,
        top5_curve=[min(100.0, value + 3) for value in curve],
        accuracy_matrix=matrix,
        task_il_curve=[min(100.0, value + 2) for value in curve],
        last=curve[-1],
        average_incremental=metrics.average_incremental(curve),
        forgetting=metrics.forgetting(matrix),
        backward_transfer=metrics.backward_transfer(matrix),
        grouped=[{"00-09": value, "old": value if t else None, "new": value} for t, value in enumerate(curve)],
        stage_seconds={"train": 10.0 + seed % 3, "statistics": 1.5, "alignment": 2.5, "evaluation": 1.0},
        peak_memory_mb=512.0,
        parameters={"all": 670_000, "trained_backbone": 600_000, "trained_heads": 1_290},
        class_accuracies=[[curve[t]] * sum(task_sizes[: t + 1]) for t in range(tasks)],
        confusion={which: [[8 if i == j else 1 for j in range(tasks)] for i in range(tasks)] for which in ("before", "after")},
        old_as_new_curve=[None, *[4.0] * (tasks - 1)],
        new_as_old_curve=[None, *[2.0] * (tasks - 1)],
        calibration_curve=[1.5] * tasks,
        uncalibrated_curve=[None, *[9.5] * (tasks - 1)],
        unknown_curve=[{name: None if t + 1 == tasks else 90.0 for name in FIGURES} for t in range(tasks)],
        task_seconds=[{"train": 2.0, "evaluation": 0.25}] * tasks,
        task_images=[300] * tasks,
        timeline=[{"task": t + 1, "stage": stage, "begin": 3.0 * t + shift, "end": 3.0 * t + shift + 1}
                  for t in range(tasks) for shift, stage in enumerate(("train", "evaluation"))],
        memory_curve=[{"images": 0, "features": 0, "statistics": 1_300_000 * (t + 1) // tasks, "parameters": 0} for t in range(tasks)],
    )


def make_result(
    method: str = "slca",
    title: str = "SLCA",
    seeds: tuple[int, ...] = (1993, 1996, 1997),
    task_sizes: tuple[int, ...] = (2, 2, 2, 2, 2),
    drop: float = 4.0,
    first: float = 97.0,
    rehearsal_free: bool = True,
    **config: Any,
) -> RunResult:
    """A run over `seeds`; keyword arguments that are left go into its config."""
    return RunResult(
        config={
            "model_name": method, "dataset": "fashion-mnist", "convnet_type": "vit-b-p16", "init_cls": task_sizes[0],
            "increment": task_sizes[-1], "seed": list(seeds), "lr": 0.01, "milestones": [18], **config,
        },
        environment={"python": "3.11.7", "torch": "2.14.1", "gpu": None, "git_commit": "931f75f-dirty"},
        seeds=[make_seed(seed, list(task_sizes), drop, first) for seed in seeds],
        method=method,
        title=title,
        rehearsal_free=rehearsal_free,
        class_names=[f"class {label}" for label in range(sum(task_sizes))],
    )
