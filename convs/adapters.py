"""Adapters beside the MLPs of a timm ViT (AdaptFormer, arXiv 2205.13535; as APER, EASE, MOS, TUNA and SSIAT use them).

    block output + 0.1 (W_up dropout(ReLU(W_down x + b)) + b'),    x the stream before norm2

W_down (width, D) starts Kaiming-uniform (a = sqrt 5), W_up and both biases at 0: a new adapter changes nothing.
Every block holds several adapters by name, side by side, of which one acts or none: a pass is run with each by selecting
it. Two hooks put them on: one on norm2 remembers x, one on the block adds. A block's names get `adapters.<name>.` beside
them and none changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convs.parts import Part, refuse_recompute, vit_blocks
from utils.errors import UserError

SCALE, DROPOUT = 0.1, 0.1  # of all methods named above


class Adapter(nn.Module):
    """One bottleneck: (..., D) -> (..., D). Made without numbers: `reset` or `load` comes next."""

    def __init__(self, dim: int, width: int, *, scale: float, dropout: float, **like: Any) -> None:
        super().__init__()
        self.scale, self.dropout = scale, dropout
        self.down = nn.utils.skip_init(nn.Linear, dim, width, **like)
        self.up = nn.utils.skip_init(nn.Linear, width, dim, **like)

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None = None) -> None:
        """Begin anew; numbers are drawn on the CPU, so that all devices begin alike."""
        if not self.down.weight.is_meta:
            start = torch.empty(self.down.weight.shape)
            self.down.weight.copy_(nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.up(F.dropout(self.down(x).relu(), self.dropout, self.training))


class BlockAdapters(nn.ModuleDict, Part):
    """The adapters of one block by name; `active` acts, None: none does."""

    kind: ClassVar = "adapters"

    def __init__(self, block: nn.Module, dim: int, **sizes: Any) -> None:
        super().__init__()
        self.sizes = {"dim": dim, **sizes}
        self.register_buffer("place", block.norm2.weight.new_empty(0), persistent=False)  # device and dtype of what is made
        self.active: str | None = None
        self.stream: Tensor | None = None  # x, between the block's norm2 and its end
        self.train(block.training)
        block.norm2.register_forward_pre_hook(self.remember)
        block.register_forward_hook(self.add_to_output)

    def make(self, name: str) -> Adapter:
        self[name] = Adapter(**self.sizes, device=self.place.device, dtype=self.place.dtype).train(self.training)
        return self[name]

    def remember(self, norm: nn.Module, args: tuple) -> None:
        if self.on and self.active is not None:
            self.stream = args[0]

    def add_to_output(self, block: nn.Module, args: tuple, output: Tensor) -> Tensor:
        if not self.on or self.active is None:
            return output
        stream, self.stream = self.stream, None
        return output + self[self.active](stream).view_as(output)  # SAM's blocks flatten the image for their MLP alone

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any) -> None:
        """A state with more adapters makes the missing ones, so that a checkpoint needs no preparation."""
        for key in state_dict:
            name = key.removeprefix(prefix).split(".")[0]
            if key.startswith(prefix) and name not in self:
                self.make(name)
        super()._load_from_state_dict(state_dict, prefix, *args)


class Adapters:
    """All blocks' adapters of `model` by name; a view, which holds nothing itself. A name may be a task's number."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.blocks = [module for module in model.modules() if isinstance(module, BlockAdapters)]
        assert self.blocks, "put_adapters comes first"

    @property
    def names(self) -> list[str]:
        return list(self.blocks[0])

    @property
    def active(self) -> str | None:
        return self.blocks[0].active

    def add(self, name: str | int, generator: torch.Generator | None = None) -> None:
        """A new adapter in every block, which changes nothing yet; the active one stays active."""
        assert str(name) not in self.names, f"there is an adapter {name} already"
        for block in self.blocks:
            block.make(str(name)).reset(generator)

    def remove(self, name: str | int) -> None:
        for block in self.blocks:
            del block[str(name)]
            block.active = None if block.active == str(name) else block.active

    def select(self, name: str | int | None) -> None:
        """From now on `name` acts in every pass; None: the model as it was."""
        assert name is None or str(name) in self.names, f"adapter {name} is not among {self.names}"
        for block in self.blocks:
            block.active = None if name is None else str(name)

    @contextmanager
    def using(self, name: str | int | None) -> Iterator[None]:
        """Inside, `name` acts. Raises UserError with gradient checkpointing where gradients are taken: use `select` there."""
        refuse_recompute(self.model, "a pass under another adapter")
        before = self.active
        self.select(name)
        try:
            yield
        finally:
            self.select(before)

    def parameters(self, name: str | int) -> list[nn.Parameter]:
        return [parameter for block in self.blocks for parameter in block[str(name)].parameters()]

    def state(self, name: str | int) -> dict[str, Tensor]:
        """The adapter's own tensors, not copies, as "<block>.<layer>.<weight or bias>"."""
        return {f"{i}.{key}": tensor for i, block in enumerate(self.blocks) for key, tensor in block[str(name)].state_dict().items()}

    @torch.no_grad()
    def load(self, name: str | int, state: Mapping[str, Tensor]) -> None:
        """Copy `state` (as `state` gives it) into the adapter, which is made if it is missing."""
        for i, block in enumerate(self.blocks):
            adapter = block[str(name)] if str(name) in block else block.make(str(name))
            adapter.load_state_dict({key.removeprefix(f"{i}."): tensor for key, tensor in state.items() if key.startswith(f"{i}.")})


def put_adapters(model: nn.Module, width: int, *, scale: float = SCALE, dropout: float = DROPOUT) -> Adapters:
    """Give every block of a timm ViT an empty set of adapters of `width`, in place; `add` and `select` come next.

    Raises:
        UserError: the model's blocks have no MLP behind a norm2.
    """
    for number, block in enumerate(vit_blocks(model, "adapters")):
        layers = [name for name, _ in block.named_children()]
        # Where the norm follows the MLP (ResPostBlock, EvaBlockPostNorm), norm2's input is not the stream.
        if not {"norm2", "mlp"} <= set(layers) or layers.index("norm2") > layers.index("mlp"):
            raise UserError(f"adapters: block {number} of {type(model).__name__} has no norm2 followed by an mlp to put an adapter beside; "
                            "choose another ViT")
        if getattr(block.norm2, "weight", None) is None:
            raise UserError(f"adapters: norm2 of block {number} of {type(model).__name__} has no weight to take its width from; choose "
                            "another ViT")
        block.adapters = BlockAdapters(block, block.norm2.weight.shape[0], width=width, scale=scale, dropout=dropout)
    return Adapters(model)
