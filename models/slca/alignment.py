"""Classifier Alignment: train all heads on features drawn from the classes' Gaussians (SLCA section 3.3, Eq. 5-6).

Heads and backbone are never touched here: alignment takes the heads' weights, trains a fused copy of them and
gives that back. With K classes and D dimensions all heads together are one (K, D) matrix; every step is one
matrix product whatever the number of tasks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from convs.heads import CosineHead
from utils.config import Strict
from utils.errors import UserError
from utils.machine.sgd import make_sgd
from utils.run.interrupt import check_stop

NORM_EPS = 1e-7  # release: added to each task's logit norm
FLOAT_BYTES = 4  # of a drawn number


class AlignmentSettings(Strict):
    """Stage 2."""

    ca_epochs: int = Field(5, ge=0, le=100_000, description="epochs of alignment; 0 switches it off")
    ca_lr: float | None = Field(None, gt=0.0, le=100.0, description="learning rate of alignment; default lr")
    ca_samples: int = Field(256, ge=1, description="features drawn per class and epoch")
    ca_batch_size: int = Field(256, ge=1, description="features per step")
    ca_mean_decay: float = Field(0.1, ge=0.0, le=1.0,
        description="how much the oldest means shrink: m_c = (1 - d + d (t_c + 1)/(T + 1)) mu_c")
    ca_with_logit_norm: float | None = Field(None,
        description="temperature tau of logit normalisation (0.1; Cars-196 0.05); missing or <= 0: off")
    ca_memory_gb: float = Field(4.0, gt=0.0, le=100_000.0,
        description="GiB that one epoch's drawn features may take; beyond it they are drawn in rounds of "
        "fewer per class (4 holds 5,461 classes of 256 x 768)")
    ca_eval: bool = Field(False, description="also report the test accuracy after every epoch of alignment")
    save_before_ca: bool = Field(False,
        description="also write the network before each alignment, <run>/seed<N>/..._before_ca_<task>")
    ca_start: Literal["local", "aligned"] = Field("local",
        description="heads that alignment starts from: as stage 1 left them (the papers), or as "
        "the alignment before left them")
    ca_pairs: float = Field(0.0, ge=0.0, le=1e6,
        description="weight of the pair term: the mean difference between the losses of samples of one class (0.1; CIFAR-100 and Cars 0.2)")
    compat: Literal["none", "release"] = Field("none",
        description="'release' reproduces its arithmetic where it is wrong (task of a class = class // last task's "
                    "size)")


def task_indicator(head_sizes: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """(K, T) matrix of 0 and 1: which task each class is of."""
    task_of_class = torch.arange(len(head_sizes)).repeat_interleave(torch.tensor(head_sizes))
    return F.one_hot(task_of_class, len(head_sizes)).float().to(device)


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
    """All heads as one layer: weight (K, D), bias (K,) where they have one, and the scale (K,) of cosine heads, which does not train."""

    weight: Tensor
    bias: Tensor | None
    head_sizes: list[int]
    scale: Tensor | None = None

    @classmethod
    def of(cls, heads: Iterable[nn.Linear | CosineHead]) -> FusedHeads:
        heads = list(heads)
        assert len({(type(h), h.bias is None) for h in heads}) == 1, "heads of one kind alone are aligned together"
        cosine, biased = isinstance(heads[0], CosineHead), heads[0].bias is not None
        return cls(torch.cat([h.weight.detach() for h in heads]).requires_grad_(),
                   torch.cat([h.bias.detach() for h in heads]).requires_grad_() if biased else None, [h.out_features for h in heads],
                   torch.cat([h.scale.detach().expand(h.out_features) for h in heads]) if cosine else None)

    @property
    def trained(self) -> list[Tensor]:
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    def logits(self, features: Tensor) -> Tensor:
        """Features (N, D) -> logits of all classes (N, K)."""
        if self.scale is None:
            return F.linear(features, self.weight, self.bias)
        return self.scale * F.linear(F.normalize(features, dim=1), F.normalize(self.weight, dim=1))

    @torch.no_grad()
    def copy_to(self, heads: Iterable[nn.Linear | CosineHead]) -> None:
        biases = [None] * len(self.head_sizes) if self.bias is None else self.bias.split(self.head_sizes)
        for head, weight, bias in zip(heads, self.weight.split(self.head_sizes), biases, strict=True):
            head.weight.copy_(weight)
            if bias is not None:
                head.bias.copy_(bias)


@dataclass
class Pairs:
    """The pair term of alignment: samples of one class shall lose alike, so that no part of a class is given up for the others.

    `weight` times the mean over classes of the mean over pairs |l_a - l_b| of the losses of two samples of that class; only of
    samples whose nearest mean is their own class's, since the others are rather their neighbours'. Goes beyond the SLCA papers:
    it is part of the LoRA chains of 2026 (docs/beyond.md).
    """

    weight: float
    means: Tensor  # (K, D)

    def term(self, features: Tensor, labels: Tensor, losses: Tensor) -> Tensor:
        """(): the weighted term for features (N, D), labels (N,) and their losses (N,); 0 where no class has two such samples."""
        # the nearest mean without the squares of the features, which are the same for all means; a class without images has NaN
        distances = self.means.square().sum(dim=1) - 2 * features @ self.means.T
        near = distances.nan_to_num(nan=torch.inf).argmin(dim=1) == labels
        pair = (labels[:, None] == labels) & near[:, None] & near
        pair.fill_diagonal_(False)
        per_class = torch.zeros(2, len(self.means), device=losses.device)  # sums of differences, numbers of pairs
        differences = (losses[:, None] - losses).abs() * pair
        sums = per_class[0].index_add(0, labels, differences.sum(dim=1))
        counts = per_class[1].index_add(0, labels, pair.sum(dim=1, dtype=losses.dtype))
        return self.weight * (sums / counts.clamp_min(1)).sum() / (counts > 0).sum().clamp_min(1)


class Alignment:
    """SGD on the fused heads; one `step` per batch of drawn features.

    Args:
        heads: the heads before alignment; `finish` writes the aligned weights into them.
        lr, momentum, weight_decay: of SGD.
        tau: temperature of logit normalisation; None or <= 0 means plain cross-entropy.
        pairs: a term beside the cross-entropy; None: without.
    """

    def __init__(self, heads: Iterable[nn.Linear | CosineHead], *, lr: float, momentum: float, weight_decay: float,
                 tau: float | None, pairs: Pairs | None = None) -> None:
        self.heads = list(heads)
        self.fused = FusedHeads.of(self.heads)
        self.indicator = task_indicator(self.fused.head_sizes, self.fused.weight.device)
        self.tau = tau if tau is not None and tau > 0 else None
        self.pairs = pairs
        self.optimizer = make_sgd(self.fused.trained, self.fused.weight.device, lr=lr, momentum=momentum, weight_decay=weight_decay)

    def set_lr(self, lr: float) -> None:
        self.optimizer.param_groups[0]["lr"] = lr

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy over all classes seen, and the pair term: features (N, D), labels (N,) in 0..K-1."""
        logits = self.fused.logits(features)
        if self.tau is not None:
            logits = normalise_logits(logits, self.indicator, self.tau)
        if self.pairs is None:
            return F.cross_entropy(logits, labels)
        losses = F.cross_entropy(logits, labels, reduction="none")
        return losses.mean() + self.pairs.term(features, labels, losses)

    def step(self, features: Tensor, labels: Tensor) -> Tensor:
        """One step of SGD; returns the detached loss before it."""
        check_stop()
        loss = self.loss(features, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def finish(self) -> None:
        """Write the aligned weights into the heads; may be called after every epoch."""
        self.fused.copy_to(self.heads)


def samples_per_round(settings: AlignmentSettings, classes: int, dim: int) -> list[int]:
    """Samples of each class per round, `ca_samples` in all: one round where all features drawn fit `ca_memory_gb`."""
    samples = settings.ca_samples
    needed = classes * samples * dim * FLOAT_BYTES
    rounds = min(max(math.ceil(needed / (settings.ca_memory_gb * 2**30)), 1), samples)
    return [samples * (r + 1) // rounds - samples * r // rounds for r in range(rounds)]


def refuse_bad_loss(loss: float, task: int, epoch: int) -> None:
    """Raises UserError for a loss that is no number or infinite."""
    if not math.isfinite(loss):
        raise UserError(f"the loss became {loss} in the alignment of task {task + 1}, epoch {epoch + 1}. Likely settings: ca_lr (or lr) "
                        "too high, ca_with_logit_norm too near 0, or ca_ridge too large. The last good checkpoint is kept; change the "
                        "setting and start a new run.")
