"""Whether tensors are a timm model's parameters: every one there in its shape, and nothing left over that belongs to the model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from timm.models import vision_transformer
from torch import Tensor, nn

from convs.published_names import JAX_MARK, timm_names

AS_TIMM_READS_JAX = {"interpolation": "bilinear", "antialias": False}  # timm resizes torch files bicubically, with antialiasing


@dataclass(frozen=True)
class Fit:
    """The tensors under one prefix of a file, against the model's parameters."""

    prefix: str  # "" or dotted, with its last dot
    state: dict[str, Tensor]  # by the model's names
    left: tuple[str, ...]  # names of what is no part of the model
    problems: tuple[str, ...]  # why they cannot be loaded
    matched: int  # tensors of the model that are there in the right shape
    notes: tuple[str, ...] = ()  # what was changed to make them fit


def fit_under(model: nn.Module, tensors: Mapping[str, Tensor], prefix: str, may_miss: tuple[str, ...]) -> Fit:
    """How `tensors` fit: as they are, or as timm converts a published file for this model (renamed, position embedding resized)."""
    state = timm_names(tensors)
    plain = _compare(model, state, prefix, may_miss)
    convert: Callable | None = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if not plain.problems or convert is None:
        return plain
    if all(name in state for name in _required(model, may_miss)):  # timm need not see the rest, which may look like the model's
        state = {name: tensor for name, tensor in state.items() if name in model.state_dict() or _belongs(model, name)}
    options = {}
    if convert is vision_transformer.checkpoint_filter_fn:
        options = {"adapt_layer_scale": True, **(AS_TIMM_READS_JAX if JAX_MARK in tensors else {})}
    try:
        converted = convert(dict(state), model, **options)
    except Exception as error:  # a tensor of another rank or size makes it stumble anywhere
        reason = f"timm cannot convert them ({type(error).__name__}: {' '.join(str(error).split())[:150]})"
        return replace(plain, problems=(*plain.problems, reason))
    found = _compare(model, converted, prefix, may_miss, _resized(state, converted))
    return found if found.matched >= plain.matched else plain


def _compare(model: nn.Module, state: dict[str, Tensor], prefix: str, may_miss: tuple[str, ...], notes: tuple[str, ...] = ()) -> Fit:
    """Every parameter of the model must be there in its shape, and nothing that belongs to a part of the model may be left over."""
    own = model.state_dict()
    state, renamed = _final_norm(state, own)
    mine = {name: tensor for name, tensor in state.items() if name in own}
    found = {
        "missing": [name for name in _required(model, may_miss) if name not in state],
        "unexpected": [name for name in state if name not in own and not name.startswith(may_miss) and _belongs(model, name)],
        "wrong shape": [f"{name} {tuple(tensor.shape)} instead of {tuple(own[name].shape)}" for name, tensor in mine.items()
                        if tensor.shape != own[name].shape],
        "no plain numbers": [f"{name} ({tensor.dtype}, {tensor.layout})" for name, tensor in mine.items()
                             if tensor.layout != torch.strided or tensor.is_floating_point() != own[name].is_floating_point()],
    }
    problems = tuple(f"{what}: {listing(names)}" for what, names in found.items() if names)
    matched = sum(tensor.shape == own[name].shape for name, tensor in mine.items())
    left = tuple(name for name in state if name not in own)
    return Fit(prefix, mine, left, problems, matched, (*renamed, *notes))


def _required(model: nn.Module, may_miss: tuple[str, ...]) -> list[str]:
    """Names that a file must hold. Whole numbers are counters and indices, which old files lack and no feature depends on."""
    return [name for name, tensor in model.state_dict().items() if tensor.is_floating_point() and not name.startswith(may_miss)]


def _belongs(model: nn.Module, name: str) -> bool:
    """Whether a tensor of this name would be part of the backbone: of one of its modules, but the classifier, or a token it reads.

    What serves pre-training alone (a decoder, a projector, a mask token, a queue) is part of no module of the model.
    """
    first, _, rest = name.partition(".")
    if not rest and "token" in name:
        return "mask" not in name
    classifiers = model.pretrained_cfg.get("classifier") or ("head", "fc", "classifier")
    classifiers = {part.partition(".")[0] for part in ([classifiers] if isinstance(classifiers, str) else classifiers)}
    return first not in classifiers and first in {*model._modules, *model._parameters, *model._buffers, *vars(model)}


def _final_norm(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """timm's models that average patch tokens call their final norm `fc_norm`, the others `norm`: give it the name of this model."""
    for ours, theirs in (("fc_norm", "norm"), ("norm", "fc_norm")):
        names = {f"{theirs}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}
        if all(new in own and new not in state and old in state and old not in own for old, new in names.items()):
            return {names.get(name, name): tensor for name, tensor in state.items()}, (f"the final norm is called {theirs} there",)
    return state, ()


def _resized(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Notes on tensors whose values timm computed anew for another grid: they share no memory with what it was given."""
    given = {tensor.untyped_storage().data_ptr() for tensor in before.values() if tensor.layout == torch.strided}
    return tuple(f"{name} was resized{f' from {tuple(before[name].shape)}' if name in before else ''} to {tuple(tensor.shape)}"
                 for name, tensor in after.items() if any(part in name for part in ("pos_embed", "patch_embed", "bias_table"))
                 and tensor.untyped_storage().data_ptr() not in given)


def listing(names: Sequence[str], limit: int = 5) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{', '.join(names[:limit])}{more}"
