"""LoRA around the linear layers of a timm ViT, wrapped without touching its code (SLCA++ section 3.2; LoRA: arXiv 2106.09685).

    y = W x + scale * B (A x),   W (out, in) frozen, A (r, in), B (out, r), B = 0 at first

W + scale B A is never formed while training, so no gradient of the size of W exists. The wrapped layer keeps W and
its bias as its own parameters: their names, and so every checkpoint's keys, stay as they were.

Differs from the authors' release: the MLP's factors exist only when they are asked for. There they are made but no
optimiser ever moves them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.errors import UserError

TARGETS = {"qkv": ("attn", "qkv"), "fc1": ("mlp", "fc1"), "fc2": ("mlp", "fc2")}  # target -> block's part, its layer


class LoRALinear(nn.Module):
    """A linear layer with a low-rank correction; same shapes as the layer it wraps: (..., in) -> (..., out).

    Args:
        base: the layer to wrap; its parameters are taken over, not copied.
        rank: r; scale: factor of the correction.
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.weight, self.bias, self.scale = base.weight, base.bias, scale
        self.in_features, self.out_features = base.in_features, base.out_features
        like = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, **like))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, **like))
        self.reset_A()

    @torch.no_grad()
    def reset_A(self) -> None:
        """A := the top r right singular vectors of W (their signs depend on the LAPACK at hand)."""
        if not self.weight.is_meta:
            self.lora_A.copy_(torch.linalg.svd(self.weight, full_matrices=False).Vh[: len(self.lora_A)])

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out).

        The correction is added inside its own product, so nothing of the output's size is made for it. Autograd follows the
        layout of a product's factors: a column-major (N, r) and a row-major (r, out) make it run the backward pass's thin
        products along their long side, which a CPU does much faster.
        """
        output = F.linear(x, self.weight, self.bias)
        low = (self.lora_A @ x.reshape(-1, self.in_features).T).T  # (N, r), column-major
        corrected = torch.addmm(output.reshape(-1, self.out_features), low, self.lora_B.T.contiguous(), alpha=self.scale)
        return corrected.view_as(output)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain layer with the weight W + scale B A."""
        layer = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None,
                          device=self.weight.device, dtype=self.weight.dtype)
        layer.weight.copy_(self.weight + self.scale * self.lora_B @ self.lora_A)
        if self.bias is not None:
            layer.bias.copy_(self.bias)
        return layer


def add_lora(model: nn.Module, rank: int, scale: float, targets: Sequence[str] = ("qkv",)) -> None:
    """Wrap the target layers of every block of a timm ViT, in place.

    Raises:
        UserError: the model has no blocks with these layers, or its blocks bypass them.
    """
    for parent, name in list(_targets(model, targets)):
        layer = getattr(parent, name)
        if rank > min(layer.in_features, layer.out_features):
            raise UserError(f"lora_rank: got {rank}, allowed: 1 to {min(layer.in_features, layer.out_features)}, the smaller side of the "
                            f"backbone's {name} layer")
        setattr(parent, name, LoRALinear(layer, rank, scale))


def merge_lora(model: nn.Module) -> nn.Module:
    """A copy of `model` with every LoRA layer merged into a plain one, for evaluation and export."""
    merged = copy.deepcopy(model)
    for parent in list(merged.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoRALinear):
                setattr(parent, name, child.merged())
    return merged


def _targets(model: nn.Module, targets: Sequence[str]) -> Iterator[tuple[nn.Module, str]]:
    """(parent, layer's name) of every target layer, found by the structure of timm's ViT blocks."""
    blocks = getattr(model, "blocks", None)
    if not blocks:
        raise UserError(f"LoRA: {type(model).__name__} has no transformer blocks; SLCA++ needs a ViT. Use model_name 'slca', or a ViT "
                        "as convnet_type")
    for number, block in enumerate(blocks):
        for target in targets:
            part_name, layer_name = TARGETS[target]
            part = getattr(block, part_name, None)
            layer = getattr(part, layer_name, None)
            # BEiT and EVA add a bias of their own and read qkv.weight directly: a wrapper would be ignored silently.
            bypassed = target == "qkv" and getattr(part, "q_bias", None) is not None
            if not isinstance(layer, nn.Linear) or bypassed:
                raise UserError(f"lora_targets: got {target!r}, but block {number} of {type(model).__name__} has no plain linear layer "
                                f"{part_name}.{layer_name}; choose among {', '.join(TARGETS)} or another ViT")
            yield part, layer_name
