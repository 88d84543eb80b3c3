"""One prediction out of several passes of a network, one per adapter or state (LAE, MOS, TUNA).

N images, K classes, T tasks with an adapter each. `shape[0]`, not `len`: an exported program keeps a free number of images.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MOS_ROUNDS = 4  # of self-refinement, release
MOS_TEMPERATURE = 0.8  # of `orthogonality`, release


def larger_softmax(first: Tensor, second: Tensor) -> Tensor:
    """max(softmax(first), softmax(second)), elementwise (N, K) (LAE, arXiv 2303.10070); rows need not sum to 1."""
    return torch.maximum(first.softmax(dim=1), second.softmax(dim=1))


def self_refined(start: Tensor, logits: Tensor, task_of_class: Tensor, rounds: int = MOS_ROUNDS) -> Tensor:
    """The logits of the adapter that an image ends at (MOS, arXiv 2412.09441): class -> its task -> that adapter's best class -> ...

    Args:
        start: (N,) the class to begin with, of the pre-trained model's prototypes.
        logits: (N, T, K) under each adapter; task_of_class: (K,).
        rounds: how often an adapter is asked at most.

    Returns:
        (N, K).
    """
    rows = torch.arange(start.shape[0], device=start.device)
    task = task_of_class[start]
    for _ in range(rounds - 1):  # an image whose task does not change stays where it is
        task = task_of_class[logits[rows, task].argmax(dim=1)]
    return logits[rows, task]


def mos_probabilities(refined: Tensor, pretrained: Tensor, tasks: int) -> Tensor:
    """softmax(refined) + softmax(T pretrained), (N, K), T tasks seen (MOS); rows sum to 2."""
    return refined.softmax(dim=1) + (tasks * pretrained).softmax(dim=1)


def orthogonality(rows: Tensor, temperature: float = MOS_TEMPERATURE) -> Tensor:
    """Cross-entropy of M M' / T against the identity, M (n, D) the stored means and a batch's features (MOS)."""
    return F.cross_entropy(rows @ rows.T / temperature, torch.arange(len(rows), device=rows.device))


def least_entropy(logits: Tensor) -> Tensor:
    """softmax of the adapter that is surest of an image, by entropy: (N, T, K) -> (N, K) (TUNA, arXiv 2508.08165)."""
    log_probabilities = logits.log_softmax(dim=2)
    entropies = -(log_probabilities.exp() * log_probabilities).sum(dim=2)  # (N, T)
    rows = torch.arange(logits.shape[0], device=logits.device)
    return log_probabilities[rows, entropies.argmin(dim=1)].exp()


def tuna_probabilities(task_logits: Tensor, universal_logits: Tensor) -> Tensor:
    """The surest task adapter's softmax plus the universal adapter's, (N, T, K) and (N, K) -> (N, K); rows sum to 2."""
    return least_entropy(task_logits) + universal_logits.softmax(dim=1)
