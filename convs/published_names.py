"""Names that other libraries give a ViT's parameters -> timm's: Google's JAX files, Hugging Face transformers, torchvision.

timm renames CLIP, DINOv2 and the like itself. A name that no rule knows stays as it is, so the strict check that follows tells it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

JAX_MARK = "embedding.kernel"  # every ViT of Google's has it, and no torch file
Rules = tuple[tuple[str, str], ...]

HUGGING_FACE: Rules = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.mask_token", "mask_token"),
    (r"embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
    (r"encoder\.layer\.(\d+)\.(?:norm1|layernorm_before)\.(\w+)", r"blocks.\1.norm1.\2"),
    (r"encoder\.layer\.(\d+)\.(?:norm2|layernorm_after)\.(\w+)", r"blocks.\1.norm2.\2"),
    (r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(\w+)", r"blocks.\1.attn.\2.\3"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layer\.(\d+)\.(?:intermediate\.dense|mlp\.fc1)\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (r"encoder\.layer\.(\d+)\.(?:output\.dense|mlp\.fc2)\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    (r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"layernorm\.(\w+)", r"norm.\1"),
)
TORCHVISION: Rules = (
    (r"class_token", "cls_token"),
    (r"encoder\.pos_embedding", "pos_embed"),
    (r"conv_proj\.(\w+)", r"patch_embed.proj.\1"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.(\w+)", r"blocks.\1.norm\2.\3"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_(\w+)", r"blocks.\1.attn.qkv.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    (r"encoder\.ln\.(\w+)", r"norm.\1"),
)
# In JAX the numbers of a block's norms and layers depend on the code that wrote the file; their order does not.
JAX: Rules = (
    (r"cls", "cls_token"),
    (r"(?:Transformer\.posembed_input\.)?pos_embedding", "pos_embed"),
    (r"embedding\.(\w+)", r"patch_embed.proj.\1"),
    (r"Transformer\.encoder_norm\.(\w+)", r"norm.\1"),
    (r"Transformer\.encoderblock_(\d+)\.LayerNorm_0\.(\w+)", r"blocks.\1.norm1.\2"),
    (r"Transformer\.encoderblock_(\d+)\.LayerNorm_[12]\.(\w+)", r"blocks.\1.norm2.\2"),
    (r"Transformer\.encoderblock_(\d+)\.MultiHeadDotProductAttention_\d\.out\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (r"Transformer\.encoderblock_(\d+)\.MultiHeadDotProductAttention_\d\.(query|key|value)\.(\w+)", r"blocks.\1.attn.\2.\3"),
    (r"Transformer\.encoderblock_(\d+)\.MlpBlock_\d\.Dense_0\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (r"Transformer\.encoderblock_(\d+)\.MlpBlock_\d\.Dense_1\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
)


def timm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters under timm's names; those that have them already are left alone. The values are the same, turned where JAX turns them."""
    if JAX_MARK in state:
        renamed = {_rename(name, JAX): tensor for name, tensor in _unstack(state).items()}
        return _join_qkv({_jax_ending(name): _from_jax(name, tensor) for name, tensor in renamed.items()})
    if "conv_proj.weight" in state:
        return {_rename(name, TORCHVISION): tensor for name, tensor in state.items()}
    if "embeddings.patch_embeddings.projection.weight" in state:
        return _join_qkv({_rename(name, HUGGING_FACE): tensor for name, tensor in state.items()})
    return dict(state)


def _rename(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        found = re.fullmatch(pattern, name)
        if found:
            return found.expand(replacement)
    return name


def _join_qkv(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm keeps query, key and value in one layer: three (D, D) -> (3 D, D)."""
    for name in [name for name in state if name.endswith((".attn.query.weight", ".attn.query.bias"))]:
        parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(part in state for part in parts):
            state[name.replace(".query.", ".qkv.")] = torch.cat([state.pop(part) for part in parts])
    return state


def _unstack(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Big Vision may keep the blocks' parameters in one array (depth, ...) each: "encoderblock.x" -> "encoderblock_0.x", ..."""
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith("Transformer.encoderblock.") and tensor.ndim:
            plain |= {name.replace("encoderblock", f"encoderblock_{i}"): part for i, part in enumerate(tensor)}
        else:
            plain[name] = tensor
    return plain


def _jax_ending(name: str) -> str:
    return re.sub(r"\.(kernel|scale)$", ".weight", name)


def _from_jax(name: str, tensor: Tensor) -> Tensor:
    """JAX multiplies from the right: (in, out) -> (out, in); heads apart: (in, H, d) and (H, d, out); convolutions (h, w, in, out)."""
    if ".attn." in name and name.endswith(".bias"):
        return tensor.flatten()
    if not name.endswith(".kernel"):
        return tensor
    if tensor.ndim == 4:
        return tensor.permute(3, 2, 0, 1)
    if tensor.ndim == 3:
        tensor = tensor.flatten(0, 1) if ".attn.proj." in name else tensor.flatten(1)
    return tensor.T if tensor.ndim == 2 else tensor
