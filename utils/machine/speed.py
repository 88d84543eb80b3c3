"""`speed`: the release's arithmetic, or as fast as the device goes; docs/scale.md says what each part gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TEST_BATCH = 512  # images per step without gradient: enough to keep a GPU busy at 224 px
LONG = 500_000  # passes of an image from which compiling pays: 40 s, then 1.27x as fast (ViT-B/16, benchmarks/GPU_RESULTS.md)


def fast_defaults(given: Mapping[str, Any], on_gpu: bool, images: int | None) -> dict[str, Any]:
    """Defaults of common settings under `"speed": "fast"`; what is `given` wins over them.

    Args:
        images: training images of the data set, None where that is not known before it is read.
    """
    defaults: dict[str, Any] = {"test_batch_size": max(TEST_BATCH, given.get("batch_size") or 0)}
    if on_gpu:  # a CPU's bf16 is no faster than its float32
        defaults |= {"precision": "bf16-mixed", "tf32": True, "compile": (images or 0) * (given.get("epochs") or 0) >= LONG}
    return defaults


def arithmetic(config: Mapping[str, Any]) -> str:
    """What a run computed in, for logs and tables: "32-true", "bf16-mixed, TF32, compiled"."""
    switches = {"tf32": "TF32", "compile": "compiled"}
    return ", ".join([config.get("precision") or "32-true", *(word for key, word in switches.items() if config.get(key))])
