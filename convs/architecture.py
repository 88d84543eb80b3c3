"""Make timm's models, and try them without memory or numbers: whether the arguments make sense, and which images a model takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import nn

from utils.errors import UserError

IMAGES_TRIED = 2
GREY_OR_COLOUR = (1, 3)  # channels that images can be brought to


def create(name: str, device: str, **args: Any) -> nn.Module:
    """timm's model on `device`. Early releases of timm 1 compute numbers while building, which the meta device has not."""
    try:
        with torch.device(device):
            return timm.create_model(name, **args)
    except RuntimeError:
        if device != "meta":
            raise
        return timm.create_model(name, **args).to(device)


def expected_images(model: nn.Module) -> tuple[int, int, int]:
    """(channels, height, width) of the images that a timm model was made for. Convolutional networks take other sizes too."""
    settings = model.pretrained_cfg
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    channels = settings["input_size"][0] if first is None else first.in_channels
    height, width = getattr(getattr(model, "patch_embed", None), "img_size", None) or settings["input_size"][1:]
    return channels, height, width


def feature_dim(model: nn.Module) -> int:
    """D of the features (N, D) of a timm model without classifier; some have one more layer before it, of another width."""
    return getattr(model, "head_hidden_size", None) or model.num_features


def check_architecture(name: str, args: dict[str, Any]) -> nn.Module:
    """Make a model from the user's arguments and pass images through it, on the meta device, where it stays. Raises UserError."""
    try:
        model = create(name, "meta", pretrained=False, num_classes=0, **args).eval()
        channels, height, width = expected_images(model)
        features = _try(model, height, width)
    except Exception as error:  # whatever timm stumbles over in there, the arguments are the reason
        raise UserError(f"convnet_type: timm cannot make {name!r} with {args}: {_words(error)}; check the arguments") from None
    if channels not in GREY_OR_COLOUR:
        raise UserError(f"convnet_type.args: got in_chans {channels}, allowed: 1 (grey) or 3 (colour), which images can be brought to")
    if tuple(features.shape) != (IMAGES_TRIED, feature_dim(model)):
        raise UserError(f"convnet_type: {name!r} with {args} gives features of shape {tuple(features.shape[1:])} per image, allowed: one "
                        f"vector of {feature_dim(model)} numbers; set global_pool to \"avg\" (or \"token\" for a ViT with a class token)")
    return model


def check_image_size(name: str, args: dict[str, Any], size: int, images: str, ways_out: Callable[[int], list[str]]) -> None:
    """Raises UserError unless the model takes images of `size` x `size` pixels.

    Args:
        images: whose they are, for the message; ways_out: from the size that the model takes, what to do about it on the side of the data.
    """
    known = timm.get_pretrained_cfg(name)
    if not args and known is not None and tuple(known.input_size[1:]) == (size, size):
        return
    model = check_architecture(name, args) if args else create(name, "meta", pretrained=False, num_classes=0).eval()
    _, height, width = expected_images(model)
    reason = _failure(model, size, size) if (height, width) != (size, size) else None
    if reason is None or _failure(model, height, width) is not None:  # a model that cannot be tried without numbers tells nothing
        return
    ways = ways_out(height) if height == width else []
    if _can_be_made_for(name, args, size):
        resized = json.dumps({**args, "img_size": size})
        ways.append(f'a backbone for {size} px, whose position embedding is then resized: {{"timm": "{name}", "args": {resized}, ...}}')
    ways.append("a backbone that takes any size, such as timm/resnet50")
    raise UserError(f"image_size: got {size} x {size} px, the size of {images}, but the backbone {name} takes {height} x {width} px "
                    f"({reason}). Ways out: {'; or '.join(ways)}")


def _can_be_made_for(name: str, args: dict[str, Any], size: int) -> bool:
    try:
        return _failure(create(name, "meta", pretrained=False, num_classes=0, **{**args, "img_size": size}).eval(), size, size) is None
    except Exception:  # it has no such argument, or no use for this size
        return False


def _failure(model: nn.Module, height: int, width: int) -> str | None:
    """Why the model does not take images of this size; None where it does."""
    try:
        _try(model, height, width)
    except Exception as error:  # every model says it in its own way
        return _words(error)
    return None


@torch.no_grad()
def _try(model: nn.Module, height: int, width: int) -> torch.Tensor:
    channels = expected_images(model)[0]
    return model(torch.empty(IMAGES_TRIED, channels, height, width, device="meta"))


def _words(error: Exception) -> str:
    text = " ".join(str(error).split())[:300].rstrip(".")
    return text if text and isinstance(error, AssertionError) else f"{type(error).__name__}: {text}"
