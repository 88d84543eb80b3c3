"""The most memory that was in use since a moment that the caller chose."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import torch

CLEAR_REFS = Path("/proc/self/clear_refs")  # Linux: writing 5 lowers the process's peak to what it uses now
STATUS = Path("/proc/self/status")


def reset_peak_memory(device: torch.device) -> None:
    """From here on `peak_memory_mb` counts anew: the device's memory, and main memory where the system can (Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        CLEAR_REFS.write_text("5")


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MiB: the device's where it keeps count, else this process's main memory; 0 where neither is counted."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with contextlib.suppress(OSError, StopIteration):
        peak = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) / 2**10
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of the whole process's life
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
