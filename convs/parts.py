"""What all parts put on a pre-trained model share: adapters, LoRA, SSF, prompts.

A part is added from outside: the model's own code, weights and parameter names stay as they are. Switched off, it leaves
the model's output bit for bit as without it. Here too: the structure of timm's ViT blocks that parts look for, features
of several passes, and the table of what trains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from utils.errors import UserError

BACKBONE, HEADS = "backbone", "heads"  # what is no part, in `part_of_parameters`


class Part(nn.Module):
    """A module that was put on a pre-trained model."""

    kind: ClassVar[str] = ""  # name in tables
    taken_over: ClassVar[frozenset[str]] = frozenset()  # parameters that are the wrapped layer's own, not the part's
    on = True  # False: the model behaves as without the part


@contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """Inside, `model` gives what it gave before any part was put on. Raises UserError with gradient checkpointing."""
    refuse_recompute(model, "a pass without the parts")
    parts = [module for module in model.modules() if isinstance(module, Part)]
    before = [part.on for part in parts]
    try:
        for part in parts:
            part.on = False
        yield
    finally:
        for part, on in zip(parts, before, strict=True):
            part.on = on


def features_of_passes(forward: Callable[[Tensor], Tensor], images: Tensor, passes: Iterable[AbstractContextManager]) -> Tensor:
    """Features (N, P D) of `images` (N, C, H, W): one pass of `forward` inside each of the P contexts, side by side."""
    features = []
    for context in passes:
        with context:
            features.append(forward(images))  # (N, D)
    return torch.cat(features, dim=1)


def refuse_recompute(model: nn.Module, what: str) -> None:
    """Raises UserError where the backward pass would run blocks again after `what` is over, so under another state."""
    if torch.is_grad_enabled() and any(getattr(module, "grad_checkpointing", False) for module in model.modules()):
        raise UserError(f"grad_checkpointing: got true, allowed: false with {what}, because the backward pass would run the blocks again "
                        "under another state; set it to false")


# The structure of a ViT ------------------------------------------------------------------------------------------


def vit_blocks(model: nn.Module, what: str) -> list[nn.Module]:
    """The transformer blocks of a timm ViT. Raises UserError, which begins with `what`, if there are none."""
    blocks = getattr(model, "blocks", None)
    if not blocks or not all(hasattr(block, "norm1") for block in blocks):
        raise UserError(f"{what}: {type(model).__name__} has no transformer blocks; choose a ViT as convnet_type, for example vit-b-p16")
    return list(blocks)


def block_layer(block: nn.Module, path: str) -> nn.Linear | None:
    """The plain linear layer at `path` ("attn.qkv") of a block; None where there is none or the block does not call it."""
    part_name, name = path.split(".")
    part = getattr(block, part_name, None)
    layer = getattr(part, name, None)
    # BEiT and EVA add a bias of their own and read qkv.weight directly: what wraps or hooks it would be ignored silently.
    bypassed = name == "qkv" and getattr(part, "q_bias", None) is not None
    return layer if isinstance(layer, nn.Linear) and not bypassed else None


# What trains -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PartCount:
    """Numbers of one part: parameters that train, parameters that are frozen, numbers in buffers."""

    part: str
    trained: int
    frozen: int
    buffers: int


def part_of_parameters(module: nn.Module) -> dict[str, str]:
    """Name of each parameter and buffer of `module` -> "backbone", "heads" or the kind of the part that it belongs to."""
    names = [name for named in (module.named_parameters(), module.named_buffers()) for name, _ in named]
    owners = {name: HEADS if name.startswith("heads.") else BACKBONE for name in names}
    for path, part in module.named_modules():
        if isinstance(part, Part):
            prefix = f"{path}." if path else ""
            own = {prefix + name for name in part.taken_over}
            owners.update({name: part.kind for name in names if name.startswith(prefix) and name not in own})
    return owners


def added_parameters(module: nn.Module) -> set[str]:
    """Names of the parameters that parts brought along: a checkpoint needs them even where they are frozen."""
    owners = part_of_parameters(module)
    return {name for name, _ in module.named_parameters() if owners[name] not in (BACKBONE, HEADS)}


def describe_parameters(module: nn.Module) -> list[PartCount]:
    """What trains and what is frozen, part by part: the backbone first, the heads last."""
    owners = part_of_parameters(module)
    rows = {owner: [0, 0, 0] for owner in (BACKBONE, *sorted(set(owners.values()) - {BACKBONE, HEADS}), HEADS) if owner in owners.values()}
    for name, parameter in module.named_parameters():
        rows[owners[name]][0 if parameter.requires_grad else 1] += parameter.numel()
    for name, buffer in module.named_buffers():
        rows[owners[name]][2] += buffer.numel()
    return [PartCount(part, *numbers) for part, numbers in rows.items()]


def parameter_table(module: nn.Module) -> str:
    """`describe_parameters` as aligned lines of text."""
    rows = [("part", "trained", "frozen", "buffers"),
            *((row.part, f"{row.trained:,}", f"{row.frozen:,}", f"{row.buffers:,}") for row in describe_parameters(module))]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *(row[c].rjust(widths[c]) for c in (1, 2, 3))]) for row in rows)
