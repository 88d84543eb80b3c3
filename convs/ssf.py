"""SSF: scale and shift the features after each layer of a frozen ViT (Lian et al., NeurIPS 2022, arXiv 2210.08823).

    y = gamma * f(x) + beta,    f the patch embedding, a block's norm1, qkv, proj, norm2, fc1, fc2, and the final norm

gamma (D,) starts normal (1, 0.02) and beta (D,) normal (0, 0.02), as in the authors' release. Put on by a hook per layer;
names get `ssf.scale` and `ssf.shift` beside the layer's own and none changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from timm.layers import HybridEmbed, PatchEmbed
from torch import Tensor, nn

from convs.parts import Part, block_layer, vit_blocks
from utils.errors import UserError

START_STD = 0.02  # release


class ScaleShift(Part):
    """gamma * y + beta over the last axis of a layer's output (..., D)."""

    kind: ClassVar = "ssf"

    def __init__(self, layer: nn.Module, dim: int, like: Tensor, generator: torch.Generator | None) -> None:
        super().__init__()
        scale = 1 + START_STD * torch.randn(dim, generator=generator)  # drawn on the CPU: all devices begin alike
        shift = START_STD * torch.randn(dim, generator=generator)
        self.scale, self.shift = (nn.Parameter(start.to(device=like.device, dtype=like.dtype)) for start in (scale, shift))
        layer.register_forward_hook(self.after)

    def after(self, layer: nn.Module, args: tuple, output: Tensor) -> Tensor:
        # Computed in the parameters' type: bfloat16 would round a scale near 1 to steps of 0.008.
        return (output * self.scale + self.shift).to(output.dtype) if self.on else output


def put_ssf(model: nn.Module, generator: torch.Generator | None = None) -> None:
    """Scale and shift after every layer named above of a timm ViT, in place.

    Raises:
        UserError: the model lacks one of the layers, or a block bypasses it.
    """
    for layer, dim, like in list(_layers(model)):
        layer.ssf = ScaleShift(layer, dim, like, generator)


def _layers(model: nn.Module) -> Iterator[tuple[nn.Module, int, Tensor]]:
    """(layer, width of its output, a weight whose device and type to take)."""
    name = type(model).__name__
    blocks = vit_blocks(model, "SSF")
    embedding = getattr(model, "patch_embed", None)
    final = next((norm for norm in (getattr(model, "norm", None), getattr(model, "fc_norm", None)) if _norm_width(norm)), None)
    # XCiT's embedding gives the image's height and width beside the tokens, others give maps.
    if not isinstance(embedding, PatchEmbed | HybridEmbed) or final is None:
        missing = "final norm" if final is None else "plain patch embedding"
        raise UserError(f"SSF: {name} has no {missing} to scale and shift; choose another ViT")
    yield embedding, model.embed_dim, final.weight
    for number, block in enumerate(blocks):
        for path in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"):
            layer = block_layer(block, path) if "." in path else getattr(block, path, None)
            width = layer.out_features if isinstance(layer, nn.Linear) else _norm_width(layer)
            if not width:
                raise UserError(f"SSF: block {number} of {name} has no plain layer {path} to scale and shift; choose another ViT")
            yield layer, width, layer.weight
    yield final, _norm_width(final), final.weight


def _norm_width(norm: nn.Module | None) -> int:
    """D of a LayerNorm or RMSNorm with weights; 0 where there is none."""
    weight = getattr(norm, "weight", None)
    return weight.shape[0] if isinstance(weight, Tensor) and weight.dim() == 1 else 0
