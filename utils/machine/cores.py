"""How many cores this process may use, and OpenMP's settings for a machine that others use too. Needs no torch: libgomp reads
its settings when torch is imported, so they must be there before.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path

CORES = "SLCA_CORES"  # variable: cores for this run, where several run side by side (utils/sweep/places.py)
SPINS = "1000"  # turns that an idle thread waits awake before it sleeps; docs/scale.md has what was measured
CGROUP_MOST_LEVELS = 32


def available_cores(environment: Mapping[str, str] = os.environ) -> int:
    """Cores by the process's affinity, its cgroup's quota (a container's --cpus) and its share of a sweep's, at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, share = cgroup_quota(), environment.get(CORES, "")
    limits = [affinity, *([] if quota is None else [math.ceil(quota)]), *([int(share)] if share.isdecimal() else [])]
    return max(1, min(limits))


def cgroup_quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """Processor time per time that the cgroup, or one above it, allows, in cores; None without a limit.

    Args:
        root: where the cgroup file system is mounted.
        own: the file that names this process's groups, one "number:controllers:path" a line.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:  # not Linux
        return None
    quotas = []
    for line in lines:
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers == "":  # version 2
            mount = root
        elif "cpu" in controllers.split(","):
            mount = root / controllers if (root / controllers).is_dir() else root / "cpu"
        else:
            continue
        group = mount / path.lstrip("/")
        for folder in [group, *group.parents][:CGROUP_MOST_LEVELS]:  # the narrowest of all levels holds
            quotas.append(_quota_of(folder))
            if folder == mount:
                break
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_of(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").exists():  # version 2: "max 100000" or "150000 100000", microseconds
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if quota != "max" and int(quota) > 0 and int(period) > 0 else None
    except (OSError, ValueError):
        return None


def prepare_openmp(environment: MutableMapping[str, str] = os.environ) -> None:
    """Before torch is imported: idle OpenMP threads soon sleep, and there are no more of them than cores. A user's own values stay.

    GNU's OpenMP lets an idle thread wait awake for milliseconds; beside other work, that takes the core from the thread which
    it waits for. It counts cores by affinity but knows no cgroup quota.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & environment.keys():
        environment["GOMP_SPINCOUNT"] = SPINS
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if "OMP_NUM_THREADS" not in environment and available_cores(environment) < affinity:
        environment["OMP_NUM_THREADS"] = str(available_cores(environment))
