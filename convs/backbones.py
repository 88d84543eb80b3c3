"""Backbones: a name or a description -> a timm model that gives features.

The release's four names are registered here with their files; every other timm model works as "timm/<name>" or
with arguments and a local file of weights. The model itself is always timm's.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import timm
import torch
from huggingface_hub import constants as hub
from timm.models import group_parameters
from torch import Tensor, nn

from convs.weights import load_weights
from utils.errors import UserError
from utils.files import PROJECT, file_sha256

WEIGHT_FOLDERS = (Path("."), Path("pretrained"), PROJECT, PROJECT / "pretrained")
WEIGHT_SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".pth.tar", ".bin")
# timm.create_model's own arguments that name files, addresses or folders, or that this module sets itself.
LOADING_ARGS = frozenset({"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "num_classes",
                          "model_name", "pretrained_strict", "pretrained_filter_fn"})


@dataclass(frozen=True)
class BackboneEntry:
    """What is known of a backbone without building it."""

    timm_name: str
    args: dict[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()  # looked for in pretrained/, first one found wins
    reset_norm: bool = False
    downloadable: bool = True  # timm knows where these weights are
    source: str = ""


_AUGREG = BackboneEntry(
    "vit_base_patch16_224.augreg_in21k",
    files=("B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz", "vit_base_patch16_224.augreg_in21k.safetensors"),
    reset_norm=True, source="ImageNet-21K, supervised, AugReg; timm downloads it (410 MB)")
_MOCO_V3 = BackboneEntry(
    "vit_base_patch16_224", files=("mocov3-vit-base-300ep.pth", "vit-b-300ep.pth.tar"), reset_norm=True, downloadable=False,
    source="MoCo v3, 300 epochs on ImageNet-1K; facebookresearch/moco-v3 lists vit-b-300ep.pth.tar")
REGISTRY: dict[str, BackboneEntry] = {
    "vit-b-p16": _AUGREG,
    "vit-b-p16-mocov3": _MOCO_V3,
    "vit-b-p16-lora": _AUGREG,
    "vit-b-p16-lora-mocov3": _MOCO_V3,
}


def register_backbone(name: str, entry: BackboneEntry) -> None:
    """Add a name for `convnet_type`, for a plugin. Raises UserError when it is taken."""
    if name in REGISTRY:
        raise UserError(f"backbone {name!r} exists already; choose another name (python main.py list backbones shows those taken)")
    REGISTRY[name] = entry


class Backbone(nn.Module):
    """A timm model without classifier: images (N, C, H, W) -> features (N, D).

    Attributes:
        dim: D.
        image_size, channels: what the model expects of an image.
        mean, std: per-channel statistics of the images it was pre-trained on.
        weights: where the weights came from and their SHA-256, for logs and results.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.dim: int = model.num_features
        settings = model.pretrained_cfg
        self.channels: int = _first_conv(model).in_channels
        grid = getattr(model, "patch_embed", None)
        self.image_size: int = grid.img_size[0] if grid is not None and grid.img_size else settings["input_size"][-1]
        self.mean: tuple[float, ...] = tuple(settings["mean"])
        self.std: tuple[float, ...] = tuple(settings["std"])
        self.weights: dict[str, str] = {"source": "random", "sha256": ""}
        self.channels_last = False

    def forward(self, images: Tensor) -> Tensor:
        return self.model(self.laid_out(images))  # (N, D)

    def laid_out(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    def speed_up(self, *, compile: bool = False, channels_last: bool = False, backend: str = "inductor") -> None:
        """Compile the model in place, and keep images and convolutions channels last.

        Only the model is compiled: heads may come and go, and no name in a checkpoint changes.
        """
        if channels_last:
            self.channels_last = True
            self.model.to(memory_format=torch.channels_last)
        if compile:
            self.model.compile(backend=backend)

    def layer_of_parameter(self) -> dict[str, int]:
        """Depth of each of the model's parameters, by its name in `model`: 0 the embedding, 1.. the blocks, last the norm."""
        return group_parameters(self.model, self.model.group_matcher(coarse=False), reverse=True)

    @property
    def reads_class_token(self) -> bool:
        """Whether the feature is a ViT's class token (else it is a mean already)."""
        return getattr(self.model, "cls_token", None) is not None and getattr(self.model, "global_pool", "") == "token"

    def class_and_mean(self, images: Tensor) -> Tensor:
        """The feature beside the mean of the patch tokens, both after the final norm: (N, 2 D). Needs `reads_class_token`."""
        tokens = self.model.forward_features(self.laid_out(images))  # (N, L, D)
        patches = tokens[:, self.model.num_prefix_tokens:]
        return torch.cat([self.model.forward_head(tokens, pre_logits=True), patches.mean(dim=1)], dim=1)


def describe(convnet_type: str, args: dict[str, Any] | None = None, weights: str | None = None) -> BackboneEntry:
    """The entry of a registered name, of "timm/<name>", or of a timm name with arguments and a file.

    Raises:
        UserError: no such backbone; the message names near ones.
    """
    if convnet_type in REGISTRY and args is None:
        return REGISTRY[convnet_type]
    name = convnet_type.removeprefix("timm/")
    if (convnet_type.startswith("timm/") or args is not None) and timm.is_model(name.split(".")[0]):
        files = (weights,) if weights else tuple(name + suffix for suffix in WEIGHT_SUFFIXES)
        return BackboneEntry(name, dict(args or {}), files, downloadable=weights is None and not args, source="timm")
    stem = name.split(".")[0]
    near = sorted(set(timm.list_models(f"*{stem}*")))[:5] or timm.list_models("vit_base*")[:5]
    raise UserError(f"convnet_type: got {convnet_type!r}, allowed: {', '.join(REGISTRY)}, 'timm/<name>' or "
                    f'{{"timm": name, "args": {{...}}, "weights": file}}; timm has for example {", ".join(near)}')


def find_weights(entry: BackboneEntry, folders: Sequence[Path] = WEIGHT_FOLDERS) -> Path | None:
    """The first of the entry's files that exists in one of `folders`."""
    for name in entry.files:
        for folder in folders:
            if (folder / name).is_file():
                return folder / name
    return None


def build_backbone(entry: BackboneEntry, *, pretrained: bool = True, reset_norm: bool | None = None,
                   pool: str | None = None, drop_path: float = 0.0, grad_checkpointing: bool = False,
                   generator_seed: int = 0, device: str = "cpu") -> Backbone:
    """Make the timm model and load its weights.

    Args:
        entry: from `describe`.
        pretrained: load weights: a file in pretrained/ first, then timm's download.
        reset_norm: start the final LayerNorm anew (weight 1, bias 0, eps 1e-5); default as the entry says.
        pool: "token" or "avg": how patch tokens become one feature; default the model's own.
        drop_path: rate of stochastic depth while training.
        grad_checkpointing: compute activations again in the backward pass instead of keeping them.
        generator_seed: seed of random weights where none are loaded.
        device: "meta" builds shapes alone, for a dry run.

    Raises:
        UserError: the model cannot be made with these arguments, or its weights are not there or do not fit.
    """
    forbidden = sorted(LOADING_ARGS & entry.args.keys())
    if forbidden:
        raise UserError(f"convnet_type.args: got {forbidden[0]!r}, which would make timm read or write files on its own, allowed: "
                        'arguments of the architecture (img_size, embed_dim, depth, ...); name a file of weights as "weights"')
    reset_norm = entry.reset_norm if reset_norm is None else reset_norm
    args = {**entry.args, **({"global_pool": pool} if pool else {}), **({"drop_path_rate": drop_path} if drop_path else {})}
    if entry.args:
        _check_architecture(entry.timm_name, args)
    file = find_weights(entry) if pretrained and device != "meta" else None
    download = pretrained and file is None and device != "meta"
    if download and not entry.downloadable:
        raise UserError(_where_to_put(entry))
    if download:
        _download_into_pretrained()
        _stay_offline_without_network()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_seed)
        try:
            model = _create(entry.timm_name, device, pretrained=download, num_classes=0, **args)
        except (TypeError, AssertionError, ValueError, RuntimeError, OSError, ImportError) as error:
            if download:
                raise UserError(f"{_where_to_put(entry)} (timm's download failed: {str(error).splitlines()[0][:150]})") from None
            raise UserError(f"convnet_type: timm cannot make {entry.timm_name!r} with {args}: {error}") from None
        except Exception as error:  # the hub's client has error classes of its own
            if not download:
                raise
            raise UserError(f"{_where_to_put(entry)} (timm's download failed: {type(error).__name__})") from None
    if file is not None:
        load_weights(model, file, may_miss=("norm.", "fc_norm.") if reset_norm else ())
    if reset_norm:
        _reset_final_norm(model, device)
    if grad_checkpointing:
        _checkpoint_activations(model)
    backbone = Backbone(model)
    if file is not None:
        backbone.weights = {"source": file.name, "sha256": file_sha256(file)}
    elif download:
        backbone.weights = {"source": f"timm: {entry.timm_name}", "sha256": ""}
    return backbone


def _create(name: str, device: str, **args: Any) -> nn.Module:
    """timm's model on `device`. Early releases of timm 1 compute numbers while building, which the meta device has not."""
    try:
        with torch.device(device):
            return timm.create_model(name, **args)
    except RuntimeError:
        if device != "meta":
            raise
        return timm.create_model(name, **args).to(device)


def list_backbones() -> str:
    """One line per registered backbone: name, dimension, timm's name, and whether its file is in pretrained/."""
    lines = []
    for name, entry in REGISTRY.items():
        backbone = build_backbone(entry, device="meta")
        file = find_weights(entry)
        where = f"pretrained/{file.name} is there" if file else (
            "not in pretrained/; timm downloads it" if entry.downloadable else f"put {' or '.join(entry.files)} into pretrained/")
        lines.append(f"{name:24} {backbone.dim} dims, {backbone.image_size} px  {entry.timm_name}  {entry.source}  ({where})")
    return "\n".join([*lines, "timm/<name>              any model of timm, weights from pretrained/<name>.* or timm's download",
                      '{"timm": ..., "args": {...}, "weights": file}   your own'])


def _reset_final_norm(model: nn.Module, device: str) -> None:
    """The release drops the pre-trained final LayerNorm for a new `nn.LayerNorm(dim)`, eps 1e-5."""
    for name in ("norm", "fc_norm"):
        if isinstance(getattr(model, name, None), nn.LayerNorm):
            setattr(model, name, nn.LayerNorm(model.num_features, device=device))
            return
    raise UserError(f"reset_norm: {type(model).__name__} has no final LayerNorm to reset; set reset_norm to false")


def _checkpoint_activations(model: nn.Module) -> None:
    try:
        model.set_grad_checkpointing(True)
    except (AttributeError, AssertionError):
        raise UserError(f"grad_checkpointing: {type(model).__name__} does not support it in timm; set it to false") from None


def _download_into_pretrained() -> None:
    """Downloads go under pretrained/, unless the user has named another folder for them by the libraries' own variables."""
    folder = PROJECT / "pretrained" / "hub"
    if not {"HF_HOME", "HF_HUB_CACHE"} & os.environ.keys():
        hub.HF_HUB_CACHE = str(folder)
    if "TORCH_HOME" not in os.environ:
        torch.hub.set_dir(str(folder))


def _check_architecture(name: str, args: dict[str, Any]) -> None:
    """Make a model from the user's arguments without memory and pass one image through it. Raises UserError."""
    try:
        backbone = Backbone(_create(name, "meta", pretrained=False, num_classes=0, **args))
        backbone(torch.empty(1, backbone.channels, backbone.image_size, backbone.image_size, device="meta"))
    except Exception as error:  # whatever timm stumbles over in there, the arguments are the reason
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise UserError(f"convnet_type: timm cannot make {name!r} with {args}: {reason}; check the arguments") from None


def _stay_offline_without_network() -> None:
    """Without a network the hub's client retries for a minute; let it look into its cache alone."""
    try:
        socket.getaddrinfo(urlsplit(hub.ENDPOINT).hostname, 443)
    except OSError:
        hub.HF_HUB_OFFLINE = True


def _first_conv(model: nn.Module) -> nn.Conv2d:
    return next(module for module in model.modules() if isinstance(module, nn.Conv2d))


def _where_to_put(entry: BackboneEntry) -> str:
    return (f"the weights of the backbone are not there: put {' or '.join(entry.files[:2]) or 'a file'} into pretrained/ "
            f"({entry.source}; see pretrained/README.md), or set pretrained to false for random weights")
