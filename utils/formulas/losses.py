"""Losses that the papers name."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

P_MIN = 1e-7  # probabilities are clamped to [P_MIN, 1]
Q_MIN = 1e-4  # one-hot labels are clamped to [Q_MIN, 1], so that their logarithm is finite


def symmetric_cross_entropy(logits: Tensor, targets: Tensor, a: float, b: float) -> Tensor:
    """a CE(z, y) + b RCE(z, y), RCE = mean_i(- sum_k p_ik log q_ik) (SLCA++ Eq. 5; Wang et al., ICCV 2019).

    p = softmax(z) and q = one-hot(y), both clamped. Args: logits (N, C), targets (N,). Returns the mean over N.
    """
    p = logits.softmax(dim=1).clamp(P_MIN, 1.0)
    q = F.one_hot(targets, logits.shape[1]).to(p.dtype).clamp(Q_MIN, 1.0)
    reverse = -(p * torch.log(q)).sum(dim=1).mean()
    return a * F.cross_entropy(logits, targets) + b * reverse


def distillation(logits: Tensor, old_logits: Tensor, temperature: float) -> Tensor:
    """- sum_k p_k log q_k, p = softmax(old / T), q = softmax(new / T) (Hinton et al. 2015; LwF Eq. 2).

    Not multiplied by T^2, as LwF and BiC have it. Args: both logits (N, C). Returns the mean over N.
    """
    return -((old_logits / temperature).softmax(dim=1) * (logits / temperature).log_softmax(dim=1)).sum(dim=1).mean()


def cosface(cosines: Tensor, targets: Tensor, scale: float, margin: float) -> Tensor:
    """Cross-entropy of s cos, the true class having s (cos - m) (CosFace, arXiv 1801.09414, Eq. 4).

    Args: cosines (N, C) in [-1, 1], targets (N,), scale s, margin m. Returns the mean over N.
    """
    return F.cross_entropy(scale * (cosines - margin * F.one_hot(targets, cosines.shape[1])), targets)
