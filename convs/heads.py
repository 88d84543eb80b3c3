"""Heads of one task each: linear with or without bias, and by cosine.

A head factory makes a head from (D, number of classes, generator); `IncrementalNet` is given one. With settings:
`functools.partial(linear_head, bias=False)`, `functools.partial(cosine_head, scale=1.0, learned=True)`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HeadFactory = Callable[[int, int, torch.Generator | None], nn.Module]
LINEAR_STD = 0.02  # SLCA's release: trunc_normal(std 0.02), bias 0


def head_of_rows(head: nn.Module, rows: Sequence[int]) -> nn.Module:
    """A copy of `head` for some of its classes."""
    cut: Any = copy.deepcopy(head)  # of one of the two classes below
    for name in ("weight", "bias"):
        whole = getattr(head, name)
        if whole is not None:
            setattr(cut, name, nn.Parameter(whole.detach()[list(rows)].clone(), requires_grad=whole.requires_grad))
    cut.out_features = len(rows)
    return cut


def linear_head(dim: int, num_classes: int, generator: torch.Generator | None = None, *, bias: bool = True) -> nn.Linear:
    """Linear(D, C) as SLCA's release begins it."""
    head = nn.utils.skip_init(nn.Linear, dim, num_classes, bias=bias)
    nn.init.trunc_normal_(head.weight, std=LINEAR_STD, generator=generator)
    if bias:
        nn.init.zeros_(head.bias)
    return head


class CosineHead(nn.Module):
    """s cos(x, w_c) of C classes: features (N, D) -> (N, C). No bias; the length of x plays no part.

    Args:
        scale: s; learned: whether s trains (LUCIR, APER, EASE) or is fixed (SSIAT, TUNA).
    """

    bias = None

    def __init__(self, dim: int, num_classes: int, *, scale: float = 1.0, learned: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = dim, num_classes
        self.weight = nn.Parameter(torch.empty(num_classes, dim))
        scales = torch.tensor(float(scale))
        if learned:
            self.scale = nn.Parameter(scales)
        else:
            self.register_buffer("scale", scales)

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None = None) -> None:
        """Uniform in +-1/sqrt(D), as the releases of LUCIR and what follows it."""
        bound = self.in_features**-0.5
        self.weight.uniform_(-bound, bound, generator=generator)

    def cosines(self, features: Tensor) -> Tensor:
        """(N, C) in [-1, 1]."""
        return F.linear(F.normalize(features, dim=1), F.normalize(self.weight, dim=1))

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * self.cosines(features)


def cosine_head(dim: int, num_classes: int, generator: torch.Generator | None = None, *, scale: float = 1.0,
                learned: bool = False) -> CosineHead:
    """CosineHead(D, C) with weights drawn from `generator`."""
    head = CosineHead(dim, num_classes, scale=scale, learned=learned)
    head.reset(generator)
    return head
