"""SGD as every stage uses it: fused where the device has it, safe where a first step is skipped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

FUSED_ON = ("cpu", "cuda")  # devices with a fused SGD


def make_sgd(parameters: Iterable[Tensor] | list[dict[str, Any]], device: torch.device, *, lr: float, momentum: float,
             weight_decay: float) -> torch.optim.SGD:
    """A new SGD of parameters on `device`; one kernel for all of them where there is one.

    Momentum starts as zeros. Left to itself, the fused SGD makes the buffer in its first step, uninitialised; with 16-mixed a
    step whose gradients overflow is skipped before anything is written there, and the next one takes what the memory held
    as momentum. From zeros the first step is the same: 0 m + g = g.
    """
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=device.type in FUSED_ON or None)
    if momentum:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
