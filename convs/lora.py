"""LoRA around the linear layers of a timm ViT, wrapped without touching its code (SLCA++ section 3.2; LoRA: arXiv 2106.09685).

    y = W x + scale * B (A x),   W (out, in) frozen, A (r, in), B (out, r), B = 0 at first

W + scale B A is never formed while training, so no gradient of the size of W exists. The wrapped layer keeps W and
its bias as its own parameters: their names, and so every checkpoint's keys, stay as they were. The usual scale is alpha / r.
Several pairs per layer, of several tasks or on q, k or v alone, are in convs/lora_pairs.py.

Differs from the authors' release: the MLP's factors exist only when they are asked for. There they are made but no
optimiser ever moves them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convs.lora_pairs import PairedLinear, put_pairs, start_A, target_layers
from convs.parts import Part
from utils.errors import UserError


class LoRALinear(Part):
    """A linear layer with a low-rank correction; same shapes as the layer it wraps: (..., in) -> (..., out).

    Args:
        base: the layer to wrap; its parameters are taken over, not copied.
        rank: r; scale: factor of the correction.
        start: what A starts as, see `start_A`.
        generator: for a random start.
    """

    kind: ClassVar = "lora"
    taken_over: ClassVar = frozenset({"weight", "bias"})

    def __init__(self, base: nn.Linear, rank: int, scale: float, start: str = "svd", generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.weight, self.bias, self.scale = base.weight, base.bias, scale
        self.in_features, self.out_features = base.in_features, base.out_features
        like: dict[str, Any] = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, **like))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, **like))
        self.reset_A(start, generator)

    @torch.no_grad()
    def reset_A(self, start: str = "svd", generator: torch.Generator | None = None) -> None:
        """A := its start: by default the top r right singular vectors of W (their signs depend on the LAPACK at hand)."""
        if not self.weight.is_meta:
            self.lora_A.copy_(start_A(start, self.weight, len(self.lora_A), generator))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out).

        The correction is added inside its own product, so nothing of the output's size is made for it. Autograd follows the
        layout of a product's factors: a column-major (N, r) and a row-major (r, out) make it run the backward pass's thin
        products along their long side, which a CPU does much faster.
        """
        output = F.linear(x, self.weight, self.bias)
        if not self.on:
            return output
        low = (self.lora_A @ x.reshape(-1, self.in_features).T).T  # (N, r), column-major
        corrected = torch.addmm(output.reshape(-1, self.out_features), low, self.lora_B.T.contiguous(), alpha=self.scale)
        return corrected.view_as(output)

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """W + scale B A (out, in)."""
        return self.weight + self.scale * self.lora_B @ self.lora_A if self.on else self.weight.clone()


def add_lora(model: nn.Module, rank: int, scale: float, targets: Sequence[str] = ("qkv",), *, start: str = "svd",
             generator: torch.Generator | None = None) -> None:
    """Wrap the target layers of every block of a timm ViT, in place.

    Args:
        targets: among qkv, fc1, fc2 (the whole layer) and q, k, v (their rows of qkv, each with a pair of its own).
        start: what the A start as: "svd", "kaiming" or "zero".

    Raises:
        UserError: the model has no blocks with these layers, its blocks bypass them, or the rank is above their width.
    """
    rows = [target for target in targets if target in ("q", "k", "v")]
    if rows and "qkv" in targets:
        raise UserError(f"lora_targets: got {list(targets)}, allowed: qkv or some of q, k, v, not both; leave one out")
    for parent, name in list(target_layers(model, [target for target in targets if target not in rows])):
        layer = getattr(parent, name)
        if rank > min(layer.in_features, layer.out_features):
            raise UserError(f"lora_rank: got {rank}, allowed: 1 to {min(layer.in_features, layer.out_features)}, the smaller side of the "
                            f"backbone's {name} layer")
        setattr(parent, name, LoRALinear(layer, rank, scale, start, generator))
    if rows:
        put_pairs(model, rows, scale).add("all", rank, start=start, generator=generator)


def merge_lora(model: nn.Module) -> nn.Module:
    """A copy of `model` with every LoRA layer merged into a plain one, for evaluation and export."""
    merged = copy.deepcopy(model)
    for parent in list(merged.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoRALinear | PairedLinear):
                setattr(parent, name, _plain(child))
    return merged


@torch.no_grad()
def _plain(layer: LoRALinear | PairedLinear) -> nn.Linear:
    plain = nn.utils.skip_init(nn.Linear, layer.in_features, layer.out_features, bias=layer.bias is not None,
                               device=layer.weight.device, dtype=layer.weight.dtype)
    plain.weight.copy_(layer.merged_weight())
    if layer.bias is not None:
        plain.bias.copy_(layer.bias)
    return plain
