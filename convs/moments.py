"""What enters linear layers, as second moments: C = mean of x x' over all tokens of all images (InfLoRA, E2-LoRA)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class InputMoments:
    """Sums over the inputs x (..., D) of one layer: their number, sum (D,) and sum of x x' (D, D), float64."""

    def __init__(self) -> None:
        self.count = 0
        self.total: Tensor | None = None
        self.outer: Tensor | None = None

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        rows = x.detach().reshape(-1, x.shape[-1]).float()  # (n, D)
        total, outer = rows.sum(dim=0).double(), (rows.T @ rows).double()  # exact enough within a batch; batches add up in float64
        self.count += len(rows)
        self.total = total if self.total is None else self.total + total
        self.outer = outer if self.outer is None else self.outer + outer

    def second_moment(self) -> Tensor:
        """C = mean of x x' (D, D)."""
        assert self.outer is not None, "no input was seen"
        return self.outer / self.count

    def covariance(self) -> Tensor:
        """mean of (x - m)(x - m)', m the mean of x, (D, D)."""
        mean = self.total / self.count
        return self.second_moment() - torch.outer(mean, mean)


@contextmanager
def input_moments(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, InputMoments]]:
    """Inside, every pass adds what enters each of `layers` to its moments, by the layers' names."""
    moments = {name: InputMoments() for name in layers}

    def watch(name: str):
        def hook(_: nn.Module, args: tuple) -> None:
            moments[name].add(args[0])
        return hook

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        yield moments
    finally:
        for handle in handles:
            handle.remove()
