"""Processor, memory, disk, /dev/shm and GPU with its driver, as the system tells them."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from utils.doctor.check import Check, State
from utils.machine.cores import available_cores
from utils.machine.environment import cpu_name
from utils.machine.memory import available_memory

PART = "machine"
GIB = 2**30
LITTLE_MEMORY = 2 * GIB
LITTLE_DISK, NO_DISK = 5 * GIB, GIB // 10  # a run of ViT-B/16 with two checkpoints takes about 1 GiB
LITTLE_SHARED = GIB // 2  # four workers, each with two batches of 64 images of 224 pixels in float32, take 0.3 GiB
SECONDS = 10  # that the driver's program may take
QUERY = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total,memory.free", "--format=csv,noheader,nounits")


def machine_checks(data_root: Path) -> list[Check]:
    """The machine's parts, those with little room left as warnings."""
    disks = {"disk of the working folder": Path.cwd(), "disk of data_root": data_root,
             "disk of temporary files": Path(tempfile.gettempdir())}
    return [Check(PART, "processor", "ok", f"{cpu_name()}, {available_cores()} cores for this process", {"cores": available_cores()}),
            memory_check(available_memory()), *(disk_check(name, path) for name, path in disks.items()),
            shared_memory_check(), *gpu_checks()]


def memory_check(free: int | None) -> Check:
    if free is None:
        return Check(PART, "memory", "ok", "how much is free is not told by this system")
    little = free < LITTLE_MEMORY
    words = f"{free / GIB:.1f} GiB free" + ('; little: set "cache" to "disk" or "none", or batch_size lower' if little else "")
    return Check(PART, "memory", "warning" if little else "ok", words, {"free_bytes": free})


def disk_check(name: str, path: Path) -> Check:
    """Room in the nearest folder of `path` that is there, and whether it can be written."""
    folder = next(place for place in (path.absolute(), *path.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(folder).free
    writable = os.access(folder, os.W_OK)
    state: State = "failed" if free < NO_DISK else "warning" if free < LITTLE_DISK or not writable else "ok"
    words = f"{free / GIB:.1f} GiB free in {folder}"
    if not writable:
        words += "; it cannot be written: name another folder (--out for runs, data_root for data)"
    elif state != "ok":
        words += "; little: a run of a ViT-B/16 writes about 1 GiB of checkpoints"
    return Check(PART, name, state, words, {"folder": str(folder), "free_bytes": free})


def shared_memory_check(place: Path = Path("/dev/shm")) -> Check:
    """Room for what worker processes hand over."""
    if not place.is_dir():
        return Check(PART, "/dev/shm", "ok", "this system has none and needs none")
    free = shutil.disk_usage(place).free
    little = free < LITTLE_SHARED
    words = f"{free / GIB:.2f} GiB free" + ('; little for worker processes: in a container raise --shm-size, or set "num_workers" to 0'
                                             if little else "")
    return Check(PART, "/dev/shm", "warning" if little else "ok", words, {"free_bytes": free})


def gpu_checks() -> list[Check]:
    """Every GPU that NVIDIA's driver names, and whether the installed torch was built for one."""
    found, build = _nvidia(), torch_cuda()
    if not found:
        return [Check(PART, "GPU", "absent", "none that nvidia-smi names; runs use the processor (docs/gpu.md)", {"torch_cuda": build})]
    checks = []
    for name, driver, total, free in found:
        facts = {"name": name, "driver": driver, "total_mib": total, "free_mib": free, "torch_cuda": build}
        words = f"{name}, driver {driver}, {free} of {total} MiB free"
        if build is None:
            words += "; the installed torch is built without CUDA: install the build for your driver (https://pytorch.org/get-started)"
        checks.append(Check(PART, "GPU", "ok" if build else "warning", words, facts))
    return checks


def _nvidia() -> list[list[str]]:
    """Name, driver, total and free MiB of each GPU; none where there is no driver, or it does not answer."""
    try:
        told = subprocess.run(QUERY, capture_output=True, text=True, check=True, timeout=SECONDS).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in told.splitlines()]
    return [row for row in rows if len(row) == 4]


def torch_cuda() -> str | None:
    """The version of CUDA that the installed torch was built with, without importing it; None: built without, or no torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^cuda\b[^=\n]*= *['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return found[1] if found else None
