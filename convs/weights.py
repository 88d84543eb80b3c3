"""Put a file's weights into a timm model: strictly (every parameter is accounted for), whatever the file wraps them in.

A checkpoint may hold the weights at any depth, under any prefix (DataParallel, torch.compile, a teacher beside a student, a Lightning
module), beside an optimiser's state, heads and decoders. There is no list of such names: what is taken is the one prefix under which all
of the model's parameters are. Where there are several, the user chooses.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from convs.published_names import JAX_MARK
from convs.weight_files import kind_of, read_tensors
from convs.weight_fit import Fit, fit_under, listing
from utils.errors import UserError

log = logging.getLogger("slca")

CHECK = "Check convnet_type (architecture, img_size, patch_size, embed_dim, depth) or use another file."


def tensors_sha256(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names and values: tells whether two models hold the same weights, whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def load_weights(model: nn.Module, path: Path, may_miss: tuple[str, ...] = (), key: str = "") -> str:
    """Copy the weights in `path` into a timm model, and log which were taken where that is not plain.

    Args:
        model: timm model made with `num_classes=0`.
        path: .safetensors, .npz (Google's JAX ViTs) or a torch file; its bytes count, not its name.
        may_miss: prefixes of the model's parameters that the file need not hold.
        key: names in the prefix that is to be taken ("teacher", "state_dict.model_ema"), "." for no prefix; "": the only one that fits.

    Returns: what was taken, in words, for logs and results.

    Raises:
        UserError: the file is damaged or holds code; no part of it fits, or several do; a weight is no finite number.
    """
    tensors = read_tensors(path)
    if kind_of(path) == "an npz file" and not _is_plain_vit(model) and hasattr(model, "load_pretrained"):
        _load_as_timm_does(model, path, tensors)
        taken = f"{len(model.state_dict())} tensors, as timm reads JAX files"
    else:
        fit = _choose(model, tensors, path, may_miss, key)
        model.load_state_dict(fit.state, strict=False)
        taken = _words(fit, tensors)
        if fit.prefix or fit.notes or fit.left:
            log.info(f"weights {path.name}: {taken}")
    _refuse_infinite({name: tensor for name, tensor in model.state_dict().items() if not name.startswith(may_miss)}, path)
    return taken


def _choose(model: nn.Module, tensors: Mapping[str, Tensor], path: Path, may_miss: tuple[str, ...], key: str) -> Fit:
    """The part of the file that fits the model. Raises UserError: there is none, or more than one."""
    prefixes = [prefix for prefix in _prefixes(model, tensors) if _is_under(prefix, key)]
    if not prefixes:
        raise UserError(f"{path}: weights_key: got {key!r}, but the file has nothing by that name that looks like weights; it has "
                        f"{listing(_first_names(tensors))}")
    tried = [fit_under(model, {name[len(prefix):]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}, prefix, may_miss)
             for prefix in prefixes]
    fits = _different([fit for fit in tried if not fit.problems])
    exact = [fit for fit in fits if _shown(fit.prefix) == key]
    if len(fits) > 1 and len(exact) != 1:
        raise UserError(f"{path}: {len(fits)} sets of weights in it fit the backbone {type(model).__name__}: "
                        f"{listing([repr(_shown(fit.prefix)) for fit in fits])}. Choose one by its name: "
                        f'{{"timm": ..., "weights": "{path.name}", "weights_key": "{_shown(fits[0].prefix)}"}}')
    if fits:
        return exact[0] if len(fits) > 1 else fits[0]
    raise UserError(f"{path}: {_why_none_fits(model, tried, tensors)}")


def _prefixes(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """Where the model's parameters could be: "", every dotted prefix of many tensors, and whatever stands before its longest name."""
    own = model.state_dict()
    counts: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".")[:-1]
        counts.update(".".join(parts[:n]) + "." for n in range(1, len(parts) + 1))
    longest = max(own, key=len)
    before = dict.fromkeys(name.removesuffix(longest) for name in tensors if name.endswith(longest))
    many = (prefix for prefix, count in counts.items() if count >= len(own) // 2)  # other libraries' layouts split and join tensors
    return list(dict.fromkeys(["", *before, *many]))


def _is_under(prefix: str, key: str) -> bool:
    """Whether the names of `key` stand together in `prefix`; "." is no prefix at all."""
    return key == _shown(prefix) or key == "" or f".{key}." in f".{prefix}"


def _different(fits: list[Fit]) -> list[Fit]:
    """Without those that hold the same values as an earlier one: under two names, they leave nothing to choose."""
    kept: list[Fit] = []
    for fit in fits:
        if not any(all(torch.equal(fit.state[name].float(), other.state[name].float()) for name in fit.state.keys() & other.state.keys())
                   for other in kept):
            kept.append(fit)
    return kept


def _refuse_infinite(state: Mapping[str, Tensor], path: Path) -> None:
    bad = [f"{name} ({int((~tensor.isfinite()).sum())} of {tensor.numel()} values)" for name, tensor in state.items()
           if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise UserError(f"{path}: these weights are not finite numbers (NaN or infinite): {listing(bad)}. The training that wrote them "
                        "diverged, or the file is damaged; use another file.")


def _load_as_timm_does(model: nn.Module, path: Path, tensors: Mapping[str, Tensor]) -> None:
    """JAX files of hybrids, ResNets and ViTs with attention pooling: timm's own reader, which checks no depth. Raises UserError."""
    prefix = next((name.removesuffix(JAX_MARK).replace(".", "/") for name in tensors if name.endswith(JAX_MARK)), "")
    blocks = {part for name in tensors for part in name.split(".") if part.startswith("encoderblock_")}
    if blocks and len(blocks) != len(getattr(model, "blocks", [])):
        raise UserError(f"{path}: these weights do not fit the backbone {type(model).__name__}: depth {len(blocks)} in the file, "
                        f"{len(getattr(model, 'blocks', []))} in the model. {CHECK}")
    try:
        model.load_pretrained(str(path), **({"prefix": prefix} if prefix else {}))
    except Exception as error:  # a name or shape that timm does not expect makes it stumble anywhere
        raise UserError(f"{path}: these weights do not fit the backbone {type(model).__name__}: {type(error).__name__}: {error}. "
                        f"{CHECK}") from None


def _is_plain_vit(model: nn.Module) -> bool:
    """A ViT all of whose parameters `timm_names` knows the JAX names of; others timm must read itself."""
    return isinstance(model, VisionTransformer) and model.attn_pool is None and not hasattr(model.patch_embed, "backbone")


def _why_none_fits(model: nn.Module, tried: list[Fit], tensors: Mapping[str, Tensor]) -> str:
    words = "these weights do not fit the backbone"
    best = max(tried, key=lambda fit: (len(fit.state), fit.matched, -len(fit.problems)))
    if not best.state:
        return (f"{words} {type(model).__name__}: no tensor in it, at any depth, has the name of one of its parameters; missing: "
                f"{listing(list(model.state_dict()))}; the file has {listing(list(tensors))}. {CHECK}")
    where = [f"under {_shown(best.prefix)!r}, where it fits best"] if best.prefix else []
    sizes = _other_size(model, best)
    return f"{words}{'' if sizes else ' ' + type(model).__name__}: {'; '.join([*sizes, *where, *best.problems])}. {CHECK}"


def _other_size(model: nn.Module, fit: Fit) -> list[str]:
    """Depth and width of a ViT's weights, where they differ from the model's: what a list of names and shapes comes from."""
    blocks, width = getattr(model, "blocks", None), fit.state.get("blocks.0.norm1.weight")
    if not blocks or width is None:
        return []
    depth = len({name.split(".")[1] for name in (*fit.state, *fit.left) if name.startswith("blocks.")})
    there, here = (depth, *width.shape), (len(blocks), model.embed_dim)
    return [] if there == here else [f"depth {depth} and width {width.numel()} in the file, {here[0]} and {here[1]} in the model"]


def _words(fit: Fit, tensors: Mapping[str, Tensor]) -> str:
    rest = [f"{fit.prefix}{name}" for name in fit.left] + [name for name in tensors if not name.startswith(fit.prefix)]
    where = f" under {_shown(fit.prefix)!r}" if fit.prefix else ""
    left = f"left out: {listing(rest, 3)}" if rest else ""
    return "; ".join(filter(None, (f"{len(fit.state)} tensors{where}", *fit.notes, left)))


def _shown(prefix: str) -> str:
    return prefix.removesuffix(".") or "."


def _first_names(tensors: Mapping[str, Tensor]) -> list[str]:
    return list(dict.fromkeys(name.partition(".")[0] for name in tensors))
