"""How long a checkpoint holds the training up: written in its way, or by a thread beside it.

    python benchmarks/checkpoints.py

The tensors are those of a checkpoint inside a task that trains all of a ViT-B/16: its weights and as much momentum, random, on
the GPU where there is one. A "step" of the training adds a product of matrices to the weights in place; steps are counted while
a checkpoint is written, and for as long while none is.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import Comparison, save, short
from torch import Tensor

from utils.run.checkpoint import CheckpointStore

WIDTH, DEPTH = 768, 12  # of ViT-B


def vit_b_tensors(device: torch.device) -> dict[str, Tensor]:
    """Random tensors of the shapes of ViT-B/16 without a head: 86 M numbers."""
    shapes = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, 197, WIDTH), "patch_embed.weight": (WIDTH, 3, 16, 16),
              "patch_embed.bias": (WIDTH,), "norm.weight": (WIDTH,), "norm.bias": (WIDTH,)}
    for block in range(DEPTH):
        for name, (out, into) in {"attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH), "mlp.fc1": (4 * WIDTH, WIDTH),
                                  "mlp.fc2": (WIDTH, 4 * WIDTH)}.items():
            shapes |= {f"blocks.{block}.{name}.weight": (out, into), f"blocks.{block}.{name}.bias": (out,)}
        shapes |= {f"blocks.{block}.{norm}.{kind}": (WIDTH,) for norm in ("norm1", "norm2") for kind in ("weight", "bias")}
    return {name: torch.rand(shape, device=device) for name, shape in shapes.items()}


class Training:
    """Steps that change the weights in place, and checkpoints between them, of which the newest stays in `folder`."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.device = device
        self.weights, self.momentum = vit_b_tensors(device), vit_b_tensors(device)
        self.store = CheckpointStore(folder)
        self.epoch = 0

    def step(self) -> None:
        block = f"blocks.{self.epoch % DEPTH}"
        self.weights[f"{block}.attn.qkv.weight"] += 1e-6 * (self.momentum[f"{block}.attn.qkv.weight"]
                                                            @ self.momentum[f"{block}.attn.proj.weight"])
        self.wait_for_device()

    def wait_for_device(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def held_up(self, beside: bool) -> float:
        """Seconds until the training may go on."""
        self.epoch += 1
        self.wait_for_device()
        start = time.perf_counter()
        self.store.save(0, self.epoch, weights=self.weights, state=self.momentum, meta={}, beside=beside)
        return time.perf_counter() - start

    def steps_while_writing(self) -> tuple[int, float]:
        """Steps that are done until a checkpoint is written, and the seconds that takes."""
        self.held_up(beside=True)
        start, steps = time.perf_counter(), 0
        while self.store.is_writing:
            self.step()
            steps += 1
        return steps, time.perf_counter() - start

    def steps_in(self, seconds: float) -> int:
        start, steps = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            self.step()
            steps += 1
        return steps


def measure(device: torch.device, rounds: int) -> dict[str, Any]:
    """Both ways in turns, `rounds` times."""
    with tempfile.TemporaryDirectory(prefix="slca_checkpoints_") as folder:
        training = Training(Path(folder), device)
        held: dict[str, list[float]] = {"in its way": [], "beside": []}
        cpu: dict[str, list[float]] = {"in its way": [], "beside": []}
        kept, writing = [], []
        for _ in range(rounds + 1):  # the first warms up the page-locked memory and the disk's cache
            for name in held:
                start = time.process_time()
                held[name].append(training.held_up(beside=name == "beside"))
                cpu[name].append(time.process_time() - start)
                training.store.wait()
            steps, seconds = training.steps_while_writing()
            kept.append(steps / max(training.steps_in(seconds), 1))
            writing.append(seconds)
        numbers = sum(tensor.numel() for tensor in training.weights.values())
    times = Comparison(held, cpu).without_first()
    return {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU", "numbers": numbers,
            "bytes": 2 * 4 * numbers, "held_up_seconds": times.medians(), "less": times.ratio("in its way", "beside"),
            "writing_seconds": statistics.median(writing[1:]), "speed_meanwhile": statistics.median(kept[1:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    figures = measure(torch.device(arguments.device), arguments.rounds)
    save("11_checkpoints", figures)
    print(f"{figures['device']}: {short(figures['less'])}; {figures['held_up_seconds']}")


if __name__ == "__main__":
    main()
