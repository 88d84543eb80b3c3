"""Learning-rate schedules as pure functions of the epoch: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from collections.abc import Sequence


def multistep(lr: float, epoch: int, milestones: Sequence[int], gamma: float) -> float:
    """lr * gamma^(number of milestones passed); SLCA's stage 1."""
    return lr * gamma ** sum(epoch >= milestone for milestone in milestones)


def cosine(lr: float, epoch: int, epochs: int, floor: float = 0.0) -> float:
    """Half a cosine from lr at epoch 0 to `floor` at epoch `epochs`; alignment and SLCA++'s stage 1."""
    return floor + (lr - floor) * (1 + math.cos(math.pi * epoch / max(epochs, 1))) / 2


def cosine_99(lr: float, epoch: int, epochs: int) -> float:
    """lr cos(99 pi k / (200 (K - 1))) in epoch k of K: a quarter of a cosine, from lr to 1.6 % of it in the last epoch; K = 1 is lr.

    CODA-Prompt's schedule (GT-RIPL/CODA-Prompt, utils/schedulers.py), taken over by InfLoRA.
    """
    return lr * math.cos(99 * math.pi * epoch / (200 * max(epochs - 1, 1)))
