"""From `device` and `precision` to a Lightning Fabric, with one clear message where the device is not there."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning_fabric.strategies import DDPStrategy

from utils.config import Device
from utils.errors import UserError

WAY_OUT = "choose another with --device cpu (or \"device\": \"cpu\"), or --device auto for whatever is there"
LONGEST_WAIT = timedelta(hours=24)  # of processes for one another: alignment runs in the first one alone


def make_fabric(device: Device | list[Device], precision: str, tf32: bool = False) -> Fabric:
    """Fabric on the devices asked for: one process per device, with DDP where there are several.

    Args:
        device: auto, cpu, cuda, cuda:1, a GPU number, a list of them, or "0,1" as the command line gives it.
        precision: 32-true, bf16-mixed or 16-mixed.
        tf32: let matrix products and convolutions of a CUDA GPU round their factors to 10 bits of mantissa.

    Under torchrun the processes are already there: `device` then says which kind, or which GPUs of each node.

    Raises:
        UserError: the device is not there, or is not understood; never a silent fall-back.
    """
    accelerator, devices = parse_device(device)
    if precision == "16-mixed" and accelerator == "cpu":
        raise UserError("precision: got 16-mixed on the CPU, allowed there: 32-true or bf16-mixed")
    if accelerator == "cuda":
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
    torchrun = TorchElasticEnvironment.detect()
    nodes = 1
    if torchrun:
        here, nodes = _torchrun_size()
        devices = _devices_under_torchrun(device, accelerator, devices, here)
    count = devices if isinstance(devices, int) else len(devices)
    # named, so that variables of Slurm or MPI in the environment of a one-process job start nothing
    environment = TorchElasticEnvironment() if torchrun else LightningEnvironment()
    strategy = DDPStrategy(gradient_as_bucket_view=True, timeout=LONGEST_WAIT) if count * nodes > 1 else "auto"
    return Fabric(accelerator=accelerator, devices=devices, num_nodes=nodes, precision=precision, strategy=strategy,
                  plugins=[environment])


def names_gpu(device: Device | list[Device]) -> bool:
    """Whether a run on `device` computes on a GPU; one that is not there counts, its absence is told elsewhere."""
    names = device if isinstance(device, list) else str(device).split(",")
    names = [str(name).strip().lower() for name in names]
    return torch.cuda.is_available() if names == ["auto"] else not set(names) <= {"cpu", "-1"}


def parse_device(device: Device | list[Device]) -> tuple[str, int | list[int]]:
    """Accelerator and devices for Fabric: ("cpu", 1), ("cpu", 2) for ["cpu", "cpu"], ("cuda", [0, 1]).

    Raises:
        UserError: a device is not there, or is not understood.
    """
    names = [str(d).strip().lower() for d in device] if isinstance(device, list) else str(device).lower().replace(" ", "").split(",")
    if names == ["auto"]:
        names = ["cuda:0"] if torch.cuda.is_available() else ["cpu"]
    if (set(names) <= {"cpu"} and names) or names == ["-1"]:
        return "cpu", len(names)
    if not names:
        raise UserError(f"device: got an empty list, allowed: a device for each process; {WAY_OUT}")
    if names == ["mps"]:
        raise UserError(f"device: got mps, but Apple's GPUs have no float64, which the statistics are computed in; {WAY_OUT}")
    numbers = [0 if name == "cuda" else _gpu_number(name, device) for name in names]
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    absent = [n for n in numbers if n >= available]
    if absent:
        raise UserError(f"device: got {device!r}, but GPU {', '.join(map(str, absent))} is not there: this machine has {available} "
                        f"GPU(s) that torch can use; {WAY_OUT}")
    return "cuda", numbers


def _torchrun_size() -> tuple[int, int]:
    """Processes on this node, and nodes."""
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    return here, int(os.environ["WORLD_SIZE"]) // here


def _devices_under_torchrun(device: Device | list[Device], accelerator: str, devices: int | list[int], here: int) -> int | list[int]:
    """The devices of this node's processes: as many as torchrun started. Raises UserError."""
    if accelerator == "cpu":
        return here
    if str(device).lower() in ("auto", "cuda") and accelerator == "cuda":
        devices = parse_device(list(range(here)))[1]
    found = devices if isinstance(devices, int) else len(devices)
    if found != here:
        raise UserError(f"device: got {device!r}, {found} device(s), but torchrun started {here} processes on this node; use "
                        f"--nproc_per_node {found}, or --device auto for one GPU per process")
    return devices


def _gpu_number(name: str, device: Device | list[Device]) -> int:
    digits = name.removeprefix("cuda:")
    if not digits.isdigit():
        raise UserError(f"device: got {device!r}, allowed: auto, cpu, cuda, cuda:<number>, or GPU numbers such as 0,1 or "
                        '["0", "1"]')
    return int(digits)
