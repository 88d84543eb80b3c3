"""Temperature scaling (Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2)."""

from __future__ import annotations

import torch
from torch import Tensor

BISECTIONS = 60
TEMPERATURES = (0.1, 1e4)  # where `fit_temperature` looks


def fit_temperature(scores: Tensor, labels: Tensor) -> float:
    """T that minimises the cross-entropy of softmax(scores / T); scores (N, K), labels (N,).

    The loss is convex in 1/T: bisection of its derivative, E[sum_k p_k s_k - s_y]. Images that are all right by far leave
    no minimum; then the smallest temperature looked at is returned.
    """
    scores = scores.double().nan_to_num(neginf=-1e30)  # a class without images scores -inf
    own = scores.gather(1, labels[:, None]).mean()
    low, high = (torch.full((), 1 / t, dtype=scores.dtype, device=scores.device) for t in reversed(TEMPERATURES))
    for _ in range(BISECTIONS):  # all on the device: the only wait is for the result
        middle = (low * high).sqrt()
        too_high = ((scores * middle).softmax(dim=1) * scores).sum(dim=1).mean() > own
        low, high = torch.where(too_high, low, middle), torch.where(too_high, middle, high)
    return (low * high).rsqrt().item()
