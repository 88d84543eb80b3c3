"""What two runs left behind, in a form that can be compared: everything but times, memory peaks and paths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from tests.support import make_config, that_it_has
from utils.config import Config

SYNTHETIC = {"name": "tiny", "layout": "synthetic", "num_classes": 5, "image_size": 16, "train_per_class": 8, "test_per_class": 4,
             "train_transform": "none"}
NOT_REPEATED = ("stage_seconds", "peak_memory_mb", "task_seconds", "timeline")


def tiny_config(**settings: Any) -> Config:
    """Three tasks (2 + 2 + 1 classes) of three epochs; a run takes about a second."""
    tiny = {"dataset": SYNTHETIC, "batch_size": 8, "epochs": 3, "ca_epochs": 2, "ca_samples": 8, "memory_size": 10, "ranpac_dim": 20,
            "deterministic": True, "checkpoint_every": 1}
    return make_config(**{**that_it_has(settings.get("model_name", "slca"), tiny), **settings})


def only_run(experiment: Path) -> Path:
    (run,) = (file.parent for file in experiment.glob("*/run.json"))
    return run


def results(run: Path) -> dict[str, Any]:
    content = json.loads((run / "results.json").read_text())
    for seed in content["seeds"]:
        for key in NOT_REPEATED:
            del seed[key]
    return content


def metrics(run: Path) -> dict[str, list[dict[str, Any]]]:
    """The lines of every seed's metrics.jsonl without their times."""
    return {file.parent.name: [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in file.read_text().splitlines()]
            for file in sorted(run.glob("seed*/metrics.jsonl"))}


def tensors(run: Path) -> dict[str, Any]:
    """All tensors of all checkpoints, by file and name."""
    return {f"{file.relative_to(run)}:{name}": tensor
            for file in sorted(run.rglob("*.safetensors")) for name, tensor in load_file(file).items()}


def assert_same_run(one: Path, other: Path) -> None:
    """Results, curves and every tensor of every checkpoint are equal, bit for bit."""
    assert results(one) == results(other), "results.json differs"
    assert metrics(one) == metrics(other), "metrics.jsonl differs"
    left, right = tensors(one), tensors(other)
    assert left.keys() == right.keys() and left, f"tensors in one alone: {sorted(left.keys() ^ right.keys())[:5]}"
    unequal = [name for name in left if left[name].numpy().tobytes() != right[name].numpy().tobytes()]
    assert not unequal, f"{len(unequal)} of {len(left)} tensors differ: {unequal[:5]}"
