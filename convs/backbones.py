"""Backbones: an entry (convs/backbone_entries.py) -> a timm model with its weights that gives features. The model is always timm's."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import torch
from huggingface_hub import constants as hub
from timm.models import group_parameters
from torch import Tensor, nn

from convs.architecture import check_architecture, create, expected_images, feature_dim
from convs.backbone_entries import REGISTRY, BackboneEntry, describe, find_weights, key_in, register_backbone, where_to_put
from convs.weights import load_weights
from utils.errors import UserError, first_line
from utils.files import PROJECT, file_sha256

__all__ = ["REGISTRY", "Backbone", "BackboneEntry", "build_backbone", "check_finite", "describe", "find_weights", "register_backbone"]

log = logging.getLogger("slca")
TimmModel = Any  # an nn.Module of timm, whose attributes differ by architecture

# timm.create_model's own arguments that name files, addresses or folders, or that this module sets itself.
LOADING_ARGS = frozenset({"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "num_classes",
                          "model_name", "pretrained_strict", "pretrained_filter_fn"})


class Backbone(nn.Module):
    """A timm model without classifier: images (N, C, H, W) -> features (N, D).

    Attributes:
        dim: D.
        image_size, channels: what the model expects of an image.
        mean, std: per-channel statistics of the images it was pre-trained on.
        weights: where the weights came from and their SHA-256, for logs and results.
    """

    def __init__(self, model: TimmModel) -> None:
        super().__init__()
        self.model = model
        self.dim: int = feature_dim(model)
        self.channels, self.image_size, _ = expected_images(model)
        settings = model.pretrained_cfg
        self.mean: tuple[float, ...] = tuple(settings["mean"])
        self.std: tuple[float, ...] = tuple(settings["std"])
        self.weights: dict[str, str] = {"source": "random", "sha256": ""}  # and "taken": what of the file, in words
        self.channels_last = False
        self._batch_norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        self._told_of_one = False

    def forward(self, images: Tensor) -> Tensor:
        with self.batch_statistics(images):
            return self.model(self.laid_out(images))  # (N, D)

    @contextmanager
    def batch_statistics(self, images: Tensor) -> Iterator[None]:
        """Inside, BatchNorm uses its running statistics where the batch is one image, which has no statistics of its own.

        Such a batch is the rest of an epoch, or a part of a batch that `accumulate` or several processes cut. Its gradient counts as any
        other's; the running statistics do not move. In torch it is an error wherever the feature map is one pixel.
        """
        training = [norm for norm in self._batch_norms if norm.training]
        alone = training if training and len(images) == 1 else []  # in this order, so that an exported program keeps a free batch size
        if alone and not self._told_of_one and not images.is_meta:
            self._told_of_one = True
            log.warning("a batch of one image has no statistics for BatchNorm, which takes its running ones there; another batch_size "
                        "(or accumulate) avoids such a rest")
        for norm in alone:
            norm.training = False
        try:
            yield
        finally:
            for norm in alone:
                norm.training = True

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
    if args:
        check_architecture(entry.timm_name, args)
    file = find_weights(entry) if pretrained and device != "meta" else None
    download = pretrained and file is None and device != "meta"
    if download and not entry.downloadable:
        raise UserError(where_to_put(entry))
    if download:
        _download_into_pretrained()
        _stay_offline_without_network()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_seed)
        try:
            model = create(entry.timm_name, device, pretrained=download, num_classes=0, **args)
        except (TypeError, AssertionError, ValueError, RuntimeError, OSError, ImportError) as error:
            if download:
                raise UserError(f"{where_to_put(entry)} (timm's download failed: {first_line(error)[:150]})") from None
            raise UserError(f"convnet_type: timm cannot make {entry.timm_name!r} with {args}: {error}") from None
        except Exception as error:  # the hub's client has error classes of its own
            if not download:
                raise
            raise UserError(f"{where_to_put(entry)} (timm's download failed: {type(error).__name__})") from None
    taken = ""
    if file is not None:
        taken = load_weights(model, file, may_miss=("norm.", "fc_norm.") if reset_norm else (), key=key_in(entry, file))
    if reset_norm:
        _reset_final_norm(model, device)
    if grad_checkpointing:
        _checkpoint_activations(model)
    backbone = Backbone(model)
    if file is not None:
        backbone.weights = {"source": file.name, "sha256": file_sha256(file), "taken": taken}
    elif download:
        backbone.weights = {"source": f"timm: {entry.timm_name}", "sha256": ""}
    return backbone


def check_finite(features: Tensor, precision: str = "32-true") -> None:
    """Raises UserError where features (N, D) are NaN or infinite, which every statistic and classifier would stumble over."""
    bad = int((~features.isfinite()).any(dim=1).sum())
    if bad:
        raise UserError(f"the backbone's features of {bad} of {len(features)} images are not finite numbers (NaN or infinite). Likely "
                        f"causes: a training that diverged (lr or bcb_lrscale too high), precision {precision} too narrow for this "
                        "backbone (try 32-true), or std of the data set near 0")


def _reset_final_norm(model: nn.Module, device: str) -> None:
    """The release drops the pre-trained final LayerNorm for a new `nn.LayerNorm(dim)`, eps 1e-5."""
    for name in ("norm", "fc_norm"):
        if isinstance(getattr(model, name, None), nn.LayerNorm):
            setattr(model, name, nn.LayerNorm(model.num_features, device=device))
            return
    raise UserError(f"reset_norm: {type(model).__name__} has no final LayerNorm to reset; set reset_norm to false")


def _checkpoint_activations(model: TimmModel) -> None:
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


def _stay_offline_without_network() -> None:
    """Without a network the hub's client retries for a minute; let it look into its cache alone."""
    try:
        socket.getaddrinfo(urlsplit(hub.ENDPOINT).hostname, 443)
    except OSError:
        hub.HF_HUB_OFFLINE = True
