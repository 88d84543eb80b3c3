"""Read files of pre-trained weights: safely (no code is ever executed) and strictly (every key is accounted for)."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from utils.errors import UserError

# A classifier for the pre-training classes is never used; these are its names in timm, MoCo v3, MAE and DINO files,
# together with the decoders and projectors that served pre-training only.
UNUSED_PREFIXES = ("head.", "head_dist.", "fc.", "classifier.", "decoder", "mask_token", "predictor.", "projector.", "pre_logits.")
MOCO_ENCODER = "module.base_encoder."


def tensors_sha256(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names and values: tells whether two models hold the same weights, whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def load_weights(model: nn.Module, path: Path, may_miss: tuple[str, ...] = ()) -> None:
    """Copy the weights in `path` into a timm model.

    Args:
        model: timm model made with `num_classes=0`.
        path: .npz (Google's JAX ViTs), .safetensors, or .pth/.pt/.tar (torch; read without running code).
        may_miss: prefixes of the model's parameters that the file need not hold.

    Raises:
        UserError: the file is damaged, holds code, or its keys or shapes do not fit the model.
    """
    if path.suffix == ".npz":
        _load_npz(model, path)
        return
    state = _timm_names(model, _state_dict(path), path)
    own = model.state_dict()
    missing = [k for k in own if k not in state and not k.startswith(may_miss)]
    unexpected = [k for k in state if k not in own and not k.startswith(UNUSED_PREFIXES) and not k.startswith(may_miss)]
    shapes = [f"{k} {tuple(v.shape)} instead of {tuple(own[k].shape)}" for k, v in state.items()
              if k in own and v.shape != own[k].shape]
    if missing or unexpected or shapes:
        raise UserError(f"{path}: these weights do not fit the backbone {type(model).__name__}: "
                        + "; ".join(_listing(*item) for item in
                                    (("missing", missing), ("unexpected", unexpected), ("wrong shape", shapes)) if item[1])
                        + ". Check convnet_type (architecture, img_size, patch_size, embed_dim, depth) or use another file.")
    model.load_state_dict({k: v for k, v in state.items() if k in own}, strict=False)


def _state_dict(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors or torch file, unwrapped from the layouts that projects publish."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Published checkpoints often carry their argparse.Namespace, which holds plain values and runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{path}: refused, it holds more than tensors and plain values (or is damaged), and loading it could "
                        f"run code: {reason[:200]}. Save its state_dict alone, best as .safetensors.") from None
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a readable file of weights (truncated or of another kind?): "
                        f"{str(error).splitlines()[0][:200] if str(error) else type(error).__name__}. Download it again.") from None
    for key in ("state_dict", "model", "teacher", "model_ema"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise UserError(f"{path}: holds no dictionary of tensors (looked at the top and under state_dict, model, teacher, model_ema).")
    return tensors


def _timm_names(model: nn.Module, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Rename a published state dict to timm's parameter names; resize position embeddings where timm can."""
    if any(k.startswith(MOCO_ENCODER) for k in state):  # official MoCo v3: momentum encoder and predictor fall away
        state = {k.removeprefix(MOCO_ENCODER): v for k, v in state.items() if k.startswith(MOCO_ENCODER)}
    for prefix in ("module.", "backbone.", "model."):
        if state and all(k.startswith(prefix) for k in state if not k.startswith(UNUSED_PREFIXES)):
            state = {k.removeprefix(prefix): v for k, v in state.items()}
    if isinstance(getattr(model, "fc_norm", None), nn.LayerNorm) and not isinstance(model.norm, nn.LayerNorm):
        # Average pooling: timm applies the final norm after pooling, under another name.
        state = {(f"fc_{k}" if k in ("norm.weight", "norm.bias") and f"fc_{k}" not in state else k): v for k, v in state.items()}
    rename: Callable | None = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if rename is None:
        return state
    try:
        return rename(dict(state), model)
    except (RuntimeError, ValueError, KeyError, AssertionError, AttributeError) as error:
        raise UserError(f"{path}: these weights do not fit the backbone {type(model).__name__}: {error}. "
                        "Check convnet_type or use another file.") from None


def _load_npz(model: nn.Module, path: Path) -> None:
    """Google's JAX checkpoints, read by timm, after a check that depth and width fit (timm's reader checks neither)."""
    if not hasattr(model, "load_pretrained"):
        raise UserError(f"{path}: npz weights are Google's ViT format, which {type(model).__name__} cannot read; "
                        "use a .safetensors or .pth file.")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = set(arrays.files)
            width = arrays["cls"].shape[-1] if "cls" in names else None
        blocks = {name.split("/")[1] for name in names if name.startswith("Transformer/encoderblock_")}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a readable npz of weights (truncated or of another kind?): {error}. Download it again.") from None
    depth = len(getattr(model, "blocks", []))
    if len(blocks) != depth or width != getattr(model, "embed_dim", None):
        raise UserError(f"{path}: these weights do not fit the backbone: depth {len(blocks)} and width {width} in the file, "
                        f"{depth} and {getattr(model, 'embed_dim', None)} in the model. Check convnet_type or use another file.")
    try:
        model.load_pretrained(str(path))
    except (KeyError, RuntimeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: these weights do not fit the backbone: {error}. Check convnet_type or use another file.") from None


def _listing(what: str, names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{what}: {', '.join(names[:limit])}{more}"
