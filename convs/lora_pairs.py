"""Several LoRA pairs around one linear layer: of several tasks, on some of its rows, some frozen.

    y = W x + scale * sum_p c_p B_p (A_p x),    A_p (r_p, in), B_p (rows, r_p)

c_p is 1, or magnitude m_p over the norm |B_p A_p| that the pair had when its direction was frozen (SD-LoRA); while it
trains, that norm counts as 1. A pair acts on all rows of its layer or on those of q, k or v in a fused qkv (InfLoRA);
r_p may be as large as the layer is wide (E2-LoRA). Frozen pairs are summed apart from trained ones, so that no gradient
is computed for them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convs.parts import Part, block_layer, refuse_recompute, vit_blocks
from utils.errors import UserError

TARGETS = {"qkv": "attn.qkv", "q": "attn.qkv", "k": "attn.qkv", "v": "attn.qkv", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
THIRD = {"q": 0, "k": 1, "v": 2}  # of a fused qkv's rows, as timm orders them


def start_A(start: str, weight: Tensor, rank: int, generator: torch.Generator | None = None) -> Tensor:
    """What A (r, in) starts as.

    Args:
        start: "svd": the top r right singular vectors of `weight` (out, in); "kaiming": Kaiming-uniform with a = sqrt 5, as
            LoRA's authors have it; "zero".
    """
    if start == "svd":
        return torch.linalg.svd(weight.detach(), full_matrices=False).Vh[:rank]
    A = torch.zeros(rank, weight.shape[1])  # on the CPU: all devices begin alike
    return nn.init.kaiming_uniform_(A, a=math.sqrt(5), generator=generator) if start == "kaiming" else A


class LoRAPair(nn.Module):
    """A (r, in), B (rows, r) and, where a magnitude is given, m () and the frozen direction's norm ()."""

    def __init__(self, rank: int, in_features: int, rows: int, *, magnitude: float | None, **like: Any) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.zeros(rank, in_features, **like))
        self.lora_B = nn.Parameter(torch.zeros(rows, rank, **like))
        self.magnitude = None if magnitude is None else nn.Parameter(torch.full((), magnitude, **like))
        self.register_buffer("norm", None if magnitude is None else torch.ones((), **like))

    @torch.no_grad()
    def freeze(self) -> None:
        """A and B train no more. With a magnitude the direction's norm moves into it: the output stays, m trains on."""
        if self.magnitude is not None and self.lora_A.requires_grad:
            # |B A|^2 = tr(B'B A A'): two r x r matrices instead of one (rows, in)
            norm = ((self.lora_B.T @ self.lora_B) * (self.lora_A @ self.lora_A.T)).sum().clamp_min(0).sqrt()
            norm = norm.where(norm > 0, self.norm)  # a pair that learned nothing has no direction; its norm is still 1
            self.norm.copy_(norm)
            self.magnitude.mul_(norm)
        self.lora_A.requires_grad_(False)
        self.lora_B.requires_grad_(False)

    @torch.no_grad()
    def set(self, A: Tensor, B: Tensor) -> None:
        """New factors, also of another rank (rows and columns stay)."""
        trains = self.lora_A.requires_grad, self.lora_B.requires_grad
        self.lora_A = nn.Parameter(A.to(self.lora_A).clone(), requires_grad=trains[0])
        self.lora_B = nn.Parameter(B.to(self.lora_B).clone(), requires_grad=trains[1])

    def product(self) -> Tensor:
        """c B A (rows, in)."""
        product = self.lora_B @ self.lora_A
        return product if self.magnitude is None else product * (self.magnitude / self.norm)


class PairedLinear(Part):
    """A linear layer with pairs by target and name, `pairs.<target>.<name>`; (..., in) -> (..., out).

    `active` names the pairs that count; None: all.
    """

    kind: ClassVar = "lora"
    taken_over: ClassVar = frozenset({"weight", "bias"})

    def __init__(self, base: nn.Linear, targets: Sequence[str], scale: float) -> None:
        super().__init__()
        self.weight, self.bias, self.scale = base.weight, base.bias, scale
        self.in_features, self.out_features = base.in_features, base.out_features
        self.pairs = nn.ModuleDict({target: nn.ModuleDict() for target in targets})
        self.active: frozenset[str] | None = None

    def rows(self, target: str) -> slice:
        """The output's rows that a pair of `target` corrects."""
        if target not in THIRD:
            return slice(0, self.out_features)
        size = self.out_features // 3
        return slice(THIRD[target] * size, (THIRD[target] + 1) * size)

    def make(self, target: str, name: str, rank: int, magnitude: float | None) -> LoRAPair:
        rows = self.rows(target)
        self.pairs[target][name] = LoRAPair(rank, self.in_features, rows.stop - rows.start, magnitude=magnitude,
                                            device=self.weight.device, dtype=self.weight.dtype)
        return self.pairs[target][name]

    def acting(self, target: str) -> list[LoRAPair]:
        return [pair for name, pair in self.pairs[target].items() if self.active is None or name in self.active]

    def forward(self, x: Tensor) -> Tensor:
        output = F.linear(x, self.weight, self.bias)
        for target in self.pairs if self.on else ():
            acting = self.acting(target)
            for trained in (False, True):
                group = [pair for pair in acting if (pair.lora_A.requires_grad or pair.lora_B.requires_grad) is trained]
                if group:
                    low, up = stacked(group, x)
                    rows = output.view(-1, self.out_features)[:, self.rows(target)]
                    rows.addmm_(low.to(rows.dtype), up.to(rows.dtype), alpha=self.scale)
        return output

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """W + scale sum_p c_p B_p A_p (out, in), of the pairs that count now."""
        weight = self.weight.clone()
        for target in self.pairs if self.on else ():
            for pair in self.acting(target):
                weight[self.rows(target)] += self.scale * pair.product()
        return weight

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any) -> None:
        """A state's pairs are made where they are missing or of another rank, so that a checkpoint needs no preparation."""
        for key, tensor in state_dict.items():
            path = key.removeprefix(prefix).split(".")  # pairs.<target>.<name>.lora_A
            if key.startswith(prefix) and path[-1] == "lora_A" and path[1] in self.pairs:
                bank, magnitude = self.pairs[path[1]], key.removesuffix("lora_A") + "magnitude"
                if path[2] not in bank:
                    self.make(path[1], path[2], len(tensor), 1.0 if magnitude in state_dict else None)
                elif len(bank[path[2]].lora_A) != len(tensor):
                    bank[path[2]].set(tensor, self.weight.new_zeros(len(bank[path[2]].lora_B), len(tensor)))
        super()._load_from_state_dict(state_dict, prefix, *args)


def stacked(pairs: Sequence[LoRAPair], x: Tensor) -> tuple[Tensor, Tensor]:
    """c_p A_p x of all pairs side by side (N, R) and all B_p below one another (R, rows): their product is the correction.

    The layouts are those of `LoRALinear.forward`, for its reason.
    """
    low = (torch.cat([pair.lora_A for pair in pairs]) @ x.reshape(-1, x.shape[-1]).T).T  # (N, R), column-major
    if any(pair.magnitude is not None for pair in pairs):
        low = low * torch.cat([(low.new_ones(()) if p.magnitude is None else p.magnitude / p.norm).expand(len(p.lora_A)) for p in pairs])
    return low, torch.cat([pair.lora_B for pair in pairs], dim=1).T.contiguous()


class Pairs:
    """All layers' pairs of `model` by name; a view, which holds nothing itself. A name may be a task's number."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.layers = {path: module for path, module in model.named_modules() if isinstance(module, PairedLinear)}
        assert self.layers, "put_pairs comes first"

    @property
    def names(self) -> list[str]:
        return list(next(iter(next(iter(self.layers.values())).pairs.values())))

    def add(self, name: str | int, rank: int, *, start: str = "kaiming", magnitude: float | None = None,
            generator: torch.Generator | None = None) -> None:
        """A new pair, B = 0, at every target; it counts from now on.

        Raises:
            UserError: the rank does not fit a layer.
        """
        for path, layer in self.layers.items():
            for target in layer.pairs:
                rows = layer.rows(target)
                sides = layer.in_features, rows.stop - rows.start
                widest = min(sides) if start == "svd" else max(sides)  # a weight has no more singular vectors
                if not 1 <= rank <= widest:
                    raise UserError(f"lora_rank: got {rank}, allowed: 1 to {widest} for {target} in the backbone's {path}")
                pair = layer.make(target, str(name), rank, magnitude)
                if not layer.weight.is_meta:
                    pair.lora_A.data.copy_(start_A(start, layer.weight[rows], rank, generator))
            layer.active = None if layer.active is None else layer.active | {str(name)}

    def of(self, name: str | int) -> Iterator[tuple[str, LoRAPair]]:
        """(path of its layer and its target, pair) of all pairs called `name`."""
        for path, layer in self.layers.items():
            for target, bank in layer.pairs.items():
                yield f"{path}.{target}", bank[str(name)]

    def freeze(self, name: str | int) -> None:
        for _, pair in self.of(name):
            pair.freeze()

    def parameters(self, name: str | int) -> list[nn.Parameter]:
        return [parameter for _, pair in self.of(name) for parameter in pair.parameters()]

    def select(self, names: Collection[str | int] | None) -> None:
        """The pairs that count from now on; None: all."""
        for layer in self.layers.values():
            layer.active = None if names is None else frozenset(map(str, names))

    @contextmanager
    def using(self, names: Collection[str | int] | None) -> Iterator[None]:
        """Inside, only the pairs in `names` count. Raises UserError with gradient checkpointing where gradients are taken."""
        refuse_recompute(self.model, "a pass under other LoRA pairs")
        before = [layer.active for layer in self.layers.values()]
        self.select(names)
        try:
            yield
        finally:
            for layer, active in zip(self.layers.values(), before, strict=True):
                layer.active = active


def put_pairs(model: nn.Module, targets: Sequence[str], scale: float = 1.0) -> Pairs:
    """Let the target layers of every block of a timm ViT take pairs, in place; `Pairs.add` comes next.

    Raises:
        UserError: the model has no blocks with these layers, or its blocks bypass them.
    """
    for parent, name in list(target_layers(model, targets)):
        here = [target for target in targets if TARGETS[target].endswith(name)]
        setattr(parent, name, PairedLinear(getattr(parent, name), here, scale))
    return Pairs(model)


def target_layers(model: nn.Module, targets: Sequence[str]) -> Iterator[tuple[nn.Module, str]]:
    """(parent, layer's name) of every layer that `targets` name, each once. Raises UserError."""
    unknown = [target for target in targets if target not in TARGETS]
    if unknown:
        raise UserError(f"lora_targets: got {unknown[0]!r}, allowed: {', '.join(TARGETS)}")
    for number, block in enumerate(vit_blocks(model, "LoRA")):
        for path in dict.fromkeys(TARGETS[target] for target in targets):
            if block_layer(block, path) is None:
                raise UserError(f"lora_targets: got {list(targets)}, but block {number} of {type(model).__name__} has no plain linear "
                                f"layer {path}; choose among {', '.join(TARGETS)} or another ViT")
            part, name = path.split(".")
            yield getattr(block, part), name
