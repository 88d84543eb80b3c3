"""What all benchmarks share: two ways of doing one thing, timed in turns, and where the figures go."""

from __future__ import annotations

import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

from utils.machine.environment import environment  # noqa: E402

BF16_FLAGS = ("avx512_bf16", "amx_bf16")
WORK = PROJECT / "benchmarks" / "work"  # ignored by git
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Comparison:
    """Seconds of several ways, one list entry per round; the rounds take turns, so other load on the machine meets all.

    Processor time (`cpu`) counts this process alone and hardly feels what else runs; wall-clock time (`seconds`) does.
    """

    seconds: dict[str, list[float]]
    cpu: dict[str, list[float]]

    def without_first(self) -> Comparison:
        """The first round warms up caches and kernels."""
        return Comparison({name: times[1:] for name, times in self.seconds.items()}, {name: times[1:] for name, times in self.cpu.items()})

    def medians(self) -> dict[str, dict[str, float]]:
        return {name: {"wall": statistics.median(self.seconds[name]), "cpu": statistics.median(self.cpu[name])} for name in self.seconds}

    def ratio(self, slow: str, fast: str) -> dict[str, float]:
        """How often `fast` fits into `slow`: medians over the rounds, and the range."""
        wall, cpu = ([a / b for a, b in zip(times[slow], times[fast], strict=True)] for times in (self.seconds, self.cpu))
        return {"median": statistics.median(wall), "min": min(wall), "max": max(wall), "rounds": len(wall),
                "cpu_median": statistics.median(cpu), "cpu_min": min(cpu), "cpu_max": max(cpu)}


def in_turns(ways: dict[str, Callable[[], Any]], rounds: int) -> Comparison:
    """Run each way once per round, in rotating order, and time it."""
    names = list(ways)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            start, cpu_start = time.perf_counter(), time.process_time()
            ways[name]()
            seconds[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - cpu_start)
    return Comparison(seconds, cpu)


class PeakMemory:
    """Highest resident memory of this process inside a `with` block, above what it had before, in bytes; sampled."""

    INTERVAL = 0.02  # seconds

    def __enter__(self) -> PeakMemory:
        self.before = self.highest = _resident()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.bytes = max(self.highest, _resident()) - self.before

    def _watch(self) -> None:
        while not self._done.wait(self.INTERVAL):
            self.highest = max(self.highest, _resident())


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def machine() -> dict[str, Any]:
    """What the figures were measured on; no paths and no names of hosts."""
    return {**environment(), "threads": torch.get_num_threads(), "cores": os.cpu_count(), "load_at_start": round(os.getloadavg()[0], 1)}


def save(name: str, figures: dict[str, Any], measured_on: dict[str, Any] | None = None) -> None:
    """Keep one benchmark's figures until all are there; `measured_on` is `machine()` of before, where that would no longer be true."""
    WORK.mkdir(parents=True, exist_ok=True)
    content = {"figures": figures, "machine": measured_on or machine()}
    (WORK / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def short(ratio: dict[str, float]) -> str:
    """A ratio for a table: medians and ranges of wall-clock and processor time."""
    return (f"{ratio['median']:.2f}x ({ratio['min']:.2f} to {ratio['max']:.2f}) by the clock, {ratio['cpu_median']:.2f}x "
            f"({ratio['cpu_min']:.2f} to {ratio['cpu_max']:.2f}) in processor time, {ratio['rounds']} rounds")


def bf16_instructions() -> list[str]:
    """Which of the processor's bfloat16 instructions Linux lists; without any, bf16 on the CPU is emulated and says nothing."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return [flag for flag in BF16_FLAGS if flag in flags]
