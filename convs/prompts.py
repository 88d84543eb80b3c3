"""Prompts for a frozen timm ViT, hooked in from outside: the model's own code and weights stay as they are.

Two ways to prompt, for each image of a batch its own:
    tokens     put before the first block's input                     (prompt tuning: L2P)
    prefixes   keys and values put before those of a block's attention (prefix tuning: DualPrompt, CODA-Prompt)

A prefix of length L works by three hooks on the attention: L empty tokens go in front of its input, what `qkv` makes
of them is replaced by (0, keys, values), and their L outputs are dropped. So attention itself stays timm's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from convs.backbones import Backbone, TimmModel
from convs.parts import Part, block_layer
from utils.errors import UserError


@dataclass(frozen=True)
class Prompt:
    """What a batch of B images is prompted with."""

    tokens: Tensor | None = None  # (B, n, D)
    prefixes: Mapping[int, Tensor] = field(default_factory=dict)  # block -> (B, 2, L, D): keys and values, all heads together


class Prompts(Part, ABC):
    """A method's learned prompts.

    `task` is the task begun last: prompts of later tasks take no part.
    """

    kind: ClassVar = "prompts"
    task = 0
    at_class_position = False  # tokens get the class token's position embedding; else none

    def begin_task(self, task: int) -> None:
        """Prepare the prompts that `task` will train."""
        self.task = task

    def get_extra_state(self) -> Tensor:
        """The task belongs to the state: without it a loaded method would use the wrong prompts."""
        return torch.tensor(self.task)

    def set_extra_state(self, state: Tensor) -> None:
        self.task = int(state)

    @abstractmethod
    def forward(self, query: Tensor) -> Prompt:
        """The prompt of each image from its query (B, D); nothing but the image decides."""

    @abstractmethod
    def for_training(self, query: Tensor) -> tuple[Prompt, Tensor]:
        """The prompt to train the current task with, and the method's own loss on keys or prompts ()."""


class PromptedBackbone(Backbone):
    """A backbone whose features are prompted: images (N, C, H, W) -> (N, D).

    The query is the feature of the same frozen model without prompts. With tokens the feature is the mean of their
    outputs (L2P), else the model's own.
    """

    def __init__(self, backbone: Backbone, prompts: Prompts) -> None:
        super().__init__(backbone.model)
        self.weights = backbone.weights
        self.prompts = prompts

    def forward(self, images: Tensor) -> Tensor:
        return self.prompted(images, self.prompts(self.query(images)))

    @torch.no_grad()
    def query(self, images: Tensor) -> Tensor:
        """Features (N, D) of the model as it was pre-trained."""
        return self.model(images).float()

    def prompted(self, images: Tensor, prompt: Prompt) -> Tensor:
        """Features (N, D) under `prompt`."""
        if prompt.tokens is not None and self.prompts.at_class_position:
            prompt = Prompt(tokens=prompt.tokens + self.model.pos_embed[:, :1], prefixes=prompt.prefixes)
        with hooked(self.model, prompt):
            tokens = self.model.forward_features(images)  # (N, [n +] 1 + patches, D)
        if prompt.tokens is None:
            return self.model.forward_head(tokens, pre_logits=True)
        return tokens[:, : prompt.tokens.shape[1]].mean(dim=1)

    def train(self, mode: bool = True) -> PromptedBackbone:
        """The frozen model never drops anything."""
        super().train(mode)
        self.model.eval()
        return self


@contextmanager
def hooked(model: TimmModel, prompt: Prompt) -> Iterator[None]:
    """Inside, the model's forward sees `prompt`; outside, the model is as it was."""
    handles = []
    if prompt.tokens is not None:
        handles.append(model.blocks[0].register_forward_pre_hook(_put_before(prompt.tokens)))
    for block, prefix in prompt.prefixes.items():
        handles += _prefix_hooks(model.blocks[block].attn, prefix)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_promptable(model: nn.Module, blocks: Sequence[int], key: str) -> None:
    """Raises UserError unless each image of a batch can get prompts of its own at these blocks of `model`."""
    check_takes_tokens(model, blocks, key)
    if getattr(model, "grad_checkpointing", False):
        raise UserError("grad_checkpointing: got true, allowed: false with prompts, because the backward pass would run the blocks again "
                        "without them")


def check_class_position(model: TimmModel, key: str) -> None:
    """Raises UserError unless `model` adds a position embedding to its class token."""
    position = getattr(model, "pos_embed", None)
    if position is None or position.shape[1] <= model.patch_embed.num_patches:
        raise UserError(f"{key}: got 'class', allowed: 'none', because this {type(model).__name__} has no position embedding of its class "
                        "token")


def check_takes_tokens(model: nn.Module, blocks: Sequence[int], key: str) -> None:
    """Raises UserError unless `model` is a ViT with these blocks, whose attention has a plain qkv layer and no fixed length."""
    found = getattr(model, "blocks", None)
    name = type(model).__name__
    if not found or not hasattr(model, "forward_head") or not hasattr(model, "cls_token"):
        raise UserError(f"convnet_type: {name} is no ViT with transformer blocks; prompts need one, for example vit-b-p16")
    parts = [model, *(getattr(block, "attn", None) for block in found)]
    if any(getattr(part, attribute, None) is not None for part in parts for attribute in ("rope", "rel_pos", "shared_rel_pos")):
        raise UserError(f"{key}: {name} sees where in the image a key is, and prompts are nowhere in it; choose another ViT")
    beyond = [block for block in blocks if not 0 <= block < len(found)]
    if beyond:
        raise UserError(f"{key}: got {list(blocks)}, allowed: blocks 0 to {len(found) - 1} of this {name}")
    for block in blocks:
        if block_layer(found[block], "attn.qkv") is None:
            raise UserError(f"{key}: block {block} of {name} has no plain attn.qkv layer to put prompts at; choose another ViT")
        if sum(p.default is p.empty for p in signature(found[block].forward).parameters.values()) > 1:
            raise UserError(f"{key}: the blocks of {name} need more than tokens (the image's height and width), which prompts do not fit; "
                            "choose another ViT")


def _put_before(tokens: Tensor):
    def hook(_: nn.Module, args: tuple) -> tuple:
        return (torch.cat([tokens.to(args[0].dtype), args[0]], dim=1), *args[1:])
    return hook


def _prefix_hooks(attention: TimmModel, prefix: Tensor) -> list[RemovableHandle]:
    keys, values = prefix.unbind(dim=1)  # (B, L, D) each
    length = keys.shape[1]
    rows = torch.cat([torch.zeros_like(keys), keys, values], dim=2)  # (B, L, 3 D) as qkv orders them
    return [
        attention.register_forward_pre_hook(lambda _, args: (F.pad(args[0], (0, 0, length, 0)), *args[1:])),
        attention.qkv.register_forward_hook(lambda _, args, out: torch.cat([rows.to(out.dtype), out[:, length:]], dim=1)),
        attention.register_forward_hook(lambda _, args, out: out[:, length:]),
    ]
