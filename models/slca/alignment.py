"""Classifier Alignment: train all heads on features drawn from the classes' Gaussians (SLCA section 3.3, Eq. 5-6).

Heads and backbone are never touched here: alignment takes the heads' weights, trains a fused copy of them and
gives that back. With K classes and D dimensions all heads together are one (K, D) matrix; every step is one
matrix product whatever the number of tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.machine.device import fuses_sgd

NORM_EPS = 1e-7  # release: added to each task's logit norm


def task_indicator(head_sizes: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """(K, T) matrix of 0 and 1: which task each class is of."""
    task_of_class = torch.arange(len(head_sizes), device=device).repeat_interleave(torch.tensor(head_sizes, device=device))
    return F.one_hot(task_of_class, len(head_sizes)).float()


def normalise_logits(logits: Tensor, indicator: Tensor, tau: float) -> Tensor:
    """z / (tau * mean_t ||z_t||_2), z_t the logits of task t; the gradient flows through the norms (SLCA Eq. 6).

    Args:
        logits: (N, K); indicator: (K, T) from `task_indicator`; tau: temperature above 0.
    """
    squares = logits.square() @ indicator  # (N, T)
    # A norm of exactly 0 has no gradient; the clamp stops it instead of letting 0/0 through.
    norms = squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt() + NORM_EPS
    return logits / (tau * norms.mean(dim=1, keepdim=True))


@dataclass
class FusedHeads:
    """All heads as one linear layer: weight (K, D) and bias (K,)."""

    weight: Tensor
    bias: Tensor
    head_sizes: list[int]

    @classmethod
    def of(cls, heads: Iterable[nn.Linear]) -> FusedHeads:
        heads = list(heads)
        return cls(torch.cat([h.weight.detach() for h in heads]).requires_grad_(),
                   torch.cat([h.bias.detach() for h in heads]).requires_grad_(), [h.out_features for h in heads])

    @torch.no_grad()
    def copy_to(self, heads: Iterable[nn.Linear]) -> None:
        for head, weight, bias in zip(heads, self.weight.split(self.head_sizes), self.bias.split(self.head_sizes), strict=True):
            head.weight.copy_(weight)
            head.bias.copy_(bias)


class Alignment:
    """SGD on the fused heads; one `step` per batch of drawn features.

    Args:
        heads: the heads before alignment; `finish` writes the aligned weights into them.
        lr, momentum, weight_decay: of SGD.
        tau: temperature of logit normalisation; None or <= 0 means plain cross-entropy.
    """

    def __init__(self, heads: Iterable[nn.Linear], *, lr: float, momentum: float, weight_decay: float, tau: float | None) -> None:
        self.heads = list(heads)
        self.fused = FusedHeads.of(self.heads)
        self.indicator = task_indicator(self.fused.head_sizes, self.fused.weight.device)
        self.tau = tau if tau is not None and tau > 0 else None
        self.optimizer = torch.optim.SGD([self.fused.weight, self.fused.bias], lr=lr, momentum=momentum, weight_decay=weight_decay,
                                         fused=fuses_sgd(self.fused.weight.device))

    def set_lr(self, lr: float) -> None:
        self.optimizer.param_groups[0]["lr"] = lr

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy over all classes seen: features (N, D), labels (N,) in 0..K-1."""
        logits = F.linear(features, self.fused.weight, self.fused.bias)
        if self.tau is not None:
            logits = normalise_logits(logits, self.indicator, self.tau)
        return F.cross_entropy(logits, labels)

    def step(self, features: Tensor, labels: Tensor) -> Tensor:
        """One step of SGD; returns the detached loss before it."""
        loss = self.loss(features, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def finish(self) -> None:
        """Write the aligned weights into the heads; may be called after every epoch."""
        self.fused.copy_to(self.heads)
