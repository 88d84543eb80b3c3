"""Figure 14: evaluation with many tasks: 300 tasks of one class beside 30, by what one evaluated image costs.

    python benchmarks/many_tasks.py

After each task all classes so far are tested, one image each: N (N + 1) / 2 images for N tasks. Each image is scored against as many
heads as there are, so some growth is in the nature of the thing; the bar is 3 times for 10 times as many tasks.
"""

from __future__ import annotations

from typing import Any

from common import WORK, machine, save

import trainer
from tests.support import make_config, that_it_has

FEW, MANY, BAR = 30, 300, 3.0
METHODS = ("ncm", "finetune", "slca")
SETTINGS = {"init_cls": 1, "increment": 1, "epochs": 1, "ca_epochs": 1, "ca_samples": 8, "test_batch_size": 64, "device": "cpu"}


def evaluation_seconds(method: str, tasks: int) -> float:
    """Seconds of all evaluations of a run of so many tasks of one class."""
    data = {"name": "synthetic", "layout": "synthetic", "num_classes": tasks, "image_size": 16, "train_per_class": 1, "test_per_class": 1,
            "train_transform": "none"}
    config = make_config(model_name=method, **that_it_has(method, {**SETTINGS, "dataset": data}))
    return trainer.train(config, WORK / "runs", name="many_tasks").seeds[0].stage_seconds["evaluation"]


def measured(method: str) -> dict[str, Any]:
    """Milliseconds per evaluated image with few and with many tasks, and their ratio."""
    per_image = {tasks: 1000 * evaluation_seconds(method, tasks) / (tasks * (tasks + 1) / 2) for tasks in (FEW, MANY)}
    return {"few": per_image[FEW], "many": per_image[MANY], "ratio": per_image[MANY] / per_image[FEW]}


def main() -> None:
    here = machine()
    trainer.write_report = lambda result, folder: None  # pages and pictures play no part
    found = {method: measured(method) for method in METHODS}
    for method, row in found.items():
        print(f"{method:10} {row['few']:.3f} ms with {FEW} tasks, {row['many']:.3f} ms with {MANY}: {row['ratio']:.2f} times (bar {BAR:g})")
    save("14_many_tasks", {"tasks": [FEW, MANY], "bar": BAR, "methods": found}, here)


if __name__ == "__main__":
    main()
