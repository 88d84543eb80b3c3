"""Figure 12: what a GPU would be given to do: launches and waits by phase, counted on a CUDA device that is only pretended.

    python benchmarks/pretended.py

Counts, not times: they do not depend on the machine or its load. tests/pretend_cuda.py says what is counted and what is not seen.
"""

from __future__ import annotations

from typing import Any

from common import WORK, machine, save

import trainer
from tests import pretend_cuda
from tests.support import make_config

CLASSES = 10  # in each of two tasks
DATA = {"name": "synthetic", "layout": "synthetic", "num_classes": 2 * CLASSES, "image_size": 28, "train_per_class": 24,
        "test_per_class": 2, "train_transform": "none"}
SETTINGS = {"dataset": DATA, "init_cls": CLASSES, "increment": CLASSES, "epochs": 1, "batch_size": 32, "device": "cuda", "seed": 0,
            "convnet_type": {"timm": "vit_tiny_patch16_224", "args": {"img_size": 28, "patch_size": 7, "embed_dim": 128, "depth": 5,
                                                                      "num_heads": 4, "mlp_ratio": 2}}}
RUNS: dict[str, tuple[dict[str, Any], list[str]]] = {  # method -> its settings, and the phases that it is asked for
    "SLCA": ({"model_name": "slca", "ca_epochs": 2, "ca_with_logit_norm": 0.1, "val_fraction": 0.1},
             ["stage 1", "fitting", "drawing", "alignment", "step of alignment", "temperature"]),
    "SLCA + RGDA": ({"model_name": "slca", "readout": "rgda", "drift": "linear"}, ["read-out", "drift"]),
    "SLCA++": ({"model_name": "slca_pp", "ca_epochs": 1}, ["stage 1"]),
    "Replay": ({"model_name": "replay", "memory_size": 200}, ["herding"]),
    "GEM": ({"model_name": "gem", "memory_size": 200}, ["stage 1"]),
}
UNITS = {"stage 1": "step", "fitting": "class", "drawing": "class", "alignment": "epoch, beside its steps", "step of alignment": "step",
         "temperature": "task", "read-out": "task", "drift": "task, forward passes included", "herding": "class"}


def counted(settings: dict[str, Any], wanted: list[str]) -> dict[str, Any]:
    """Launches and waits per unit of the phases `wanted` of one run."""
    pretend_cuda.reset()
    with pretend_cuda.Mode():
        trainer.train(make_config(**SETTINGS, **settings), WORK / "runs", name="pretended")
    assert not pretend_cuda.errors, pretend_cuda.errors
    phases = pretend_cuda.phases
    return {name: {"unit": UNITS[name], "units": phases[name].units, "launches": phases[name].launches / phases[name].units,
                   "waits": phases[name].waits.total() / phases[name].units} for name in wanted}


def main() -> None:
    reason = pretend_cuda.unsupported()
    if reason is not None:
        raise SystemExit(reason)
    here = machine()
    pretend_cuda.believe()
    pretend_cuda.instrument()
    trainer.write_report = lambda result, folder: None  # pages and pictures play no part
    found = {name: counted(settings, wanted) for name, (settings, wanted) in RUNS.items()}
    for name, phases in found.items():
        for phase, row in phases.items():
            print(f"{name:12} {phase:18} {row['launches']:7.1f} launches {row['waits']:6.2f} waits per {row['unit']}")
    save("12_pretended", found, here)


if __name__ == "__main__":
    main()
