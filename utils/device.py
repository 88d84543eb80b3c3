"""From `device` and `precision` to a Lightning Fabric, with one clear message where the device is not there."""

from __future__ import annotations

import torch
from lightning_fabric import Fabric

from utils.config import Device
from utils.errors import UserError

WAY_OUT = "choose another with --device cpu (or \"device\": \"cpu\"), or --device auto for whatever is there"


def make_fabric(device: Device | list[Device], precision: str) -> Fabric:
    """Fabric on the devices asked for.

    Args:
        device: auto, cpu, cuda, cuda:1, mps, a GPU number, a list of them, or "0,1" as the command line gives it.
        precision: 32-true, bf16-mixed or 16-mixed.

    Raises:
        UserError: the device is not there, or is not understood; never a silent fall-back.
    """
    accelerator, devices = parse_device(device)
    if precision == "16-mixed" and accelerator == "cpu":
        raise UserError("precision: got 16-mixed on the CPU, allowed there: 32-true or bf16-mixed")
    return Fabric(accelerator=accelerator, devices=devices, precision=precision)


def parse_device(device: Device | list[Device]) -> tuple[str, int | list[int]]:
    """Accelerator and devices for Fabric: ("cpu", 1), ("cuda", [0, 1]), ("mps", 1). Raises UserError."""
    names = [str(d).strip().lower() for d in device] if isinstance(device, list) else str(device).lower().replace(" ", "").split(",")
    if names == ["auto"]:
        names = ["cuda:0"] if torch.cuda.is_available() else ["mps"] if torch.backends.mps.is_available() else ["cpu"]
    if names == ["cpu"] or names == ["-1"]:
        return "cpu", 1
    if names == ["mps"]:
        if not torch.backends.mps.is_available():
            raise UserError(f"device: got mps, but this machine has no Apple GPU that torch can use; {WAY_OUT}")
        return "mps", 1
    numbers = [0 if name == "cuda" else _gpu_number(name, device) for name in names]
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    absent = [n for n in numbers if n >= available]
    if absent:
        raise UserError(f"device: got {device!r}, but GPU {', '.join(map(str, absent))} is not there: this machine has {available} GPU(s) that "
                        f"torch can use; {WAY_OUT}")
    return "cuda", numbers


def _gpu_number(name: str, device: Device | list[Device]) -> int:
    digits = name.removeprefix("cuda:")
    if not digits.isdigit():
        raise UserError(f"device: got {device!r}, allowed: auto, cpu, cuda, cuda:<number>, mps, or GPU numbers such as 0,1 or [\"0\", \"1\"]")
    return int(digits)
