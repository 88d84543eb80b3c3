"""Figures 4 and 6, and what cheaper covariances cost: whole demo runs, the textbook's way beside the project's.

    python benchmarks/whole_run.py [--seeds 0 1 2]
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from common import WORK, bf16_instructions, in_turns, save, short
from textbook import Plain

from models import resolve_config
from models.slca.gaussians import ClassGaussians
from models.tools.build import make_learner
from trainer import train
from utils.config import load_config
from utils.machine.device import make_fabric
from utils.run.monitor import Monitor

CONFIGS = {"SLCA": "exps/slca_demo.json", "SLCA++": "exps/slcapp_demo.json"}
KINDS: dict[str, dict] = {"full": {}, "full, float16": {"dtype": torch.float16}, "lowrank, rank 64": {"cov": "lowrank", "rank": 64},
                          "lowrank, rank 16": {"cov": "lowrank", "rank": 16}, "diag": {"cov": "diag"}, "shared": {"cov": "shared"}}


def project(path: str, seed: int, **settings: object) -> float:
    """Last accuracy of one seed of the project's run: everything a user gets, results and report included."""
    config = load_config(Path(path), {"seed": seed, "device": "cpu", **settings})
    return train(config, WORK / "runs", name=Path(path).stem).seeds[0].last


def end_to_end(seeds: list[int]) -> dict:
    """Figure 4: seconds of a whole run of one seed, and the accuracy of both ways."""
    found = {}
    for name, path in CONFIGS.items():
        plain = Plain(json.loads(Path(path).read_text(encoding="utf-8")), plus_plus=name == "SLCA++")
        accuracies: dict[str, list[float]] = {"textbook": [], "project": []}

        def next_seed(way: str, run: Callable[[int], float], done: dict[str, list[float]] = accuracies) -> None:
            done[way].append(run(seeds[len(done[way])]))

        comparison = in_turns({"textbook": partial(next_seed, "textbook", plain.run),
                               "project": partial(next_seed, "project", partial(project, path))}, len(seeds))
        found[name] = {"seconds": comparison.medians(), "speedup": comparison.ratio("textbook", "project"), "last_accuracy": accuracies,
                       "mean_difference": statistics.mean(accuracies["project"]) - statistics.mean(accuracies["textbook"])}
    return found


def covariance_kinds(seeds: list[int]) -> dict:
    """Last accuracy on the demo under each kind of covariance, on one and the same trained backbone per seed.

    Training does not depend on alignment in SLCA, so each seed trains once; statistics of every kind are fitted task by task,
    and the heads are aligned with each kind after the last task.
    """
    last: dict[str, list[float]] = {name: [] for name in KINDS}
    kept: dict[str, float] = {}
    for seed in seeds:
        config = resolve_config(load_config(Path(CONFIGS["SLCA"]), {"seed": seed, "device": "cpu", "ca_epochs": 0}))
        learner = make_learner(config, seed, make_fabric("cpu", "32-true"))
        data, tasks = learner.data, learner.stream.num_tasks
        gaussians = {name: ClassGaussians(config.ca_ridge, **kind) for name, kind in KINDS.items()}
        for task in range(tasks):
            learner.learn_task(task, Monitor())
            features, labels = learner.extract("train", task)
            for each in gaussians.values():
                each.fit(features, labels, data.stream.classes_of(task))
        learner.config = config.model_copy(update={"ca_epochs": load_config(Path(CONFIGS["SLCA"])).ca_epochs})
        for name, each in gaussians.items():
            learner.gaussians = each
            learner.align(tasks - 1, Monitor())
            last[name].append(learner.evaluate(tasks - 1).top1)
            learner.recall_heads()
            kept[name] = each.nbytes() / len(each)
    return {name: {"last_accuracy": values, "mean": statistics.mean(values), "bytes_per_class": kept[name],
                   "difference": statistics.mean(values) - statistics.mean(last["full"])} for name, values in last.items()}


def bf16_accuracy(seeds: list[int]) -> dict:
    """Last accuracy of whole demo runs in bf16-mixed beside 32-true."""
    last = {precision: [project(CONFIGS["SLCA"], seed, precision=precision) for seed in seeds] for precision in ("32-true", "bf16-mixed")}
    return {"last_accuracy": last, "difference": statistics.mean(last["bf16-mixed"]) - statistics.mean(last["32-true"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    found = covariance_kinds(arguments.seeds)
    save("covariance_kinds", found)
    for name, row in found.items():
        print(f"covariance {name}: {row['difference']:+.2f} points")
    found = end_to_end(arguments.seeds)
    save("4_whole_run", found)
    for name, row in found.items():
        print(f"{name}, whole demo run: {short(row['speedup'])} faster; accuracy {row['mean_difference']:+.2f} points")
    if bf16_instructions():
        found = bf16_accuracy(arguments.seeds)
        save("6_bf16_accuracy", found)
        print(f"bf16-mixed against 32-true: {found['difference']:+.2f} points")


if __name__ == "__main__":
    main()
