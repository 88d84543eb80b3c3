"""What `feature_cache` saves: seconds of the first and the second seed, with and without it, in turns; the figures must be the same.

    python benchmarks/feature_cache.py [--rounds 3] [--no_large]

Seconds are those of training, statistics and evaluation; the second seed learns the same images in another order of classes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import PROJECT

import trainer
from models import load_experiment
from utils.report.results import RunResult
from utils.terminal import quiet_terminal

SEEDS = [0, 1]
LARGE = {"dataset": {"name": "made", "layout": "synthetic", "num_classes": 10, "image_size": 224, "train_per_class": 8,
                     "test_per_class": 4}, "convnet_type": "timm/vit_small_patch16_224", "pretrained": False, "init_cls": 5, "increment": 5}
CASES: dict[str, tuple[str, Mapping[str, Any]]] = {
    "icons50_frozen_rgda_near": ("icons50_frozen_rgda_near.json", {}),
    "linear_probe_demo": ("linear_probe_demo.json", {}),
    "ncm, ViT-S/16, 120 images of 224 px": ("ncm_demo.json", LARGE),
}


def run(file: str, settings: Mapping[str, Any], cache: str) -> RunResult:
    """Both seeds in a folder of their own."""
    with tempfile.TemporaryDirectory() as folder:
        own = {"seed": SEEDS, "device": "cpu", "feature_cache": cache, "data_root": folder, "keep_checkpoints": "none"}
        with quiet_terminal():
            return trainer.train(load_experiment(PROJECT / "exps" / file, {**settings, **own}), Path(folder) / "logs")


def measure(file: str, settings: Mapping[str, Any], rounds: int) -> dict[str, list[float]]:
    """Median seconds of each seed without ("none") and with ("disk") the cache. Raises AssertionError where a figure differs."""
    seconds: dict[str, list[list[float]]] = {"none": [], "disk": []}
    for _ in range(rounds):
        found = {cache: run(file, settings, cache) for cache in seconds}
        assert [s.accuracy_matrix for s in found["none"].seeds] == [s.accuracy_matrix for s in found["disk"].seeds], "figures differ"
        for cache, result in found.items():
            seconds[cache].append([sum(seed.stage_seconds.values()) for seed in result.seeds])
    return {cache: [statistics.median(seed) for seed in zip(*times, strict=True)] for cache, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no_large", action="store_true", help="leave out the ViT-S/16")
    arguments = parser.parse_args()
    trainer.write_report = lambda result, folder: None  # pictures play no part here
    print("| run | first seed, none | second seed, none | first seed, disk | second seed, disk |\n|---|---:|---:|---:|---:|")
    for name, (file, settings) in list(CASES.items())[:2 if arguments.no_large else None]:
        found = measure(file, settings, arguments.rounds)
        print(f"| {name} | " + " | ".join(f"{seconds:.2f} s" for cache in ("none", "disk") for seconds in found[cache]) + " |", flush=True)


if __name__ == "__main__":
    main()
