"""Adapt a pre-trained backbone in the first task, then freeze it (APER, arXiv 2303.07338; RanPAC's phase 1).

`adapt` puts the part on and says what trains. `convs.parts.switched_off` then gives the pre-trained features beside the
adapted ones, for all kinds but "full", whose pre-trained weights are a state of their own (convs/states.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch

from convs.adapters import put_adapters
from convs.backbones import Backbone
from convs.lora import add_lora
from convs.parts import added_parameters
from convs.ssf import put_ssf
from convs.vpt import TOKENS, put_vpt
from utils.errors import UserError

Kind = Literal["none", "adapter", "ssf", "vpt_shallow", "vpt_deep", "full", "lora"]
FIRST = "first"  # the adapter's name


def adapt(backbone: Backbone, kind: Kind, *, width: int = 64, tokens: int = TOKENS, rank: int = 4, lora_scale: float = 1.0,
          lora_targets: Sequence[str] = ("q", "v"), generator: torch.Generator | None = None) -> list[str]:
    """Put the part `kind` on `backbone.model`, in place; returns the names there of the parameters to train.

    Args:
        width: of an adapter; tokens: of prompts; rank, lora_scale and lora_targets: of LoRA, see `add_lora`.
        generator: the part's start is drawn from it.

    Raises:
        UserError: an unknown kind, or a model that the part does not fit.
    """
    model = backbone.model
    before = added_parameters(model)
    if kind == "full":
        return [name for name, _ in model.named_parameters() if name not in before]
    if kind == "adapter":
        adapters = put_adapters(model, width)
        adapters.add(FIRST, generator)
        adapters.select(FIRST)
    elif kind == "ssf":
        put_ssf(model, generator)
    elif kind in ("vpt_shallow", "vpt_deep"):
        put_vpt(model, deep=kind == "vpt_deep", tokens=tokens)
    elif kind == "lora":
        add_lora(model, rank, lora_scale, lora_targets, start="kaiming", generator=generator)
    elif kind != "none":
        raise UserError(f"first_session: got {kind!r}, allowed: {', '.join(get_args(Kind))}")
    new = added_parameters(model) - before
    return [name for name, _ in model.named_parameters() if name in new]
