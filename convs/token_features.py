"""More of one forward pass than its class token: means and deviations over patch tokens, of the last and of inner blocks.

    cls         the model's own feature: the class token after the final norm; without a class token, its pooled feature
    mean, std   over the patch tokens after the final norm (of a convolutional network: over the positions of its last map)
    mean@-2     the same of the tokens that leave an inner block, here the last but one; each token is layer-normalised, without weights,
                because blocks differ in scale. @-1 is the last block before the final norm. Of a ResNet: stages instead of blocks
    cls@-2      the class token there

The deviation is that of the population, which exists for a single position too. What it is worth: docs/beyond.md.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convs.backbones import Backbone
from utils.errors import UserError

KINDS = ("cls", "mean", "std")
NORM_EPS = 1e-6  # of the final norm of timm's ViTs
LEAST_VARIANCE = 1e-12  # keeps the gradient of the square root finite where all tokens agree


@dataclass(frozen=True)
class Part:
    """One of the joined features: what is read (`KINDS`), and after which block, counted from 0; None: after the final norm."""

    kind: str
    block: int | None = None


class TokenFeatures:
    """Reads joined features off one forward pass of a backbone: images (N, C, H, W) -> (N, dim).

    It keeps no network: a copy of the backbone (an earlier state, a moving average) is read the same way. Gradients flow through it.

    Attributes:
        names: the parts as they were asked for, in their order.
        slices: the columns of each part.
        dim: all columns.
        blocks: numbers of the inner blocks that are read; has_prefix: whether timm gives their class token beside their patches.

    Raises:
        UserError: a part is unknown, named twice, or the backbone has no such block or no class token there.
    """

    def __init__(self, backbone: Backbone, names: Sequence[str]) -> None:
        self.names = tuple(names)
        if not names or len(set(names)) < len(names):
            raise UserError(f"features: got {list(names)}, allowed: one or more of {', '.join(KINDS)} and mean@-2 (a block), each once")
        self.parts = tuple(_parse(backbone.model, name) for name in names)
        self.blocks = sorted({part.block for part in self.parts if part.block is not None})
        self.has_prefix = _is_vit(backbone.model)
        widths = [_width(backbone, part) for part in self.parts]
        self.dim = sum(widths)
        ends = [sum(widths[: i + 1]) for i in range(len(widths))]
        self.slices = {name: slice(end - width, end) for name, end, width in zip(self.names, ends, widths, strict=True)}

    def __call__(self, backbone: Backbone, images: Tensor) -> Tensor:
        """The parts side by side, in one pass; float32 at least, whatever autocast computes the tokens in."""
        model = backbone.model
        with backbone.batch_statistics(images):
            output, inner = _pass(model, backbone.laid_out(images), self.blocks, self.has_prefix)
        last = _final_tokens(model, output)  # (N, L, D)
        joined = []
        for part in self.parts:
            if part == Part("cls"):
                joined.append(_wide(model.forward_head(output)))
            else:
                prefix, patches = last if part.block is None else _normalised(inner[part.block])
                joined.append(prefix[:, 0] if part.kind == "cls" else _summary(part.kind, patches))
        return torch.cat(joined, dim=1)


Tokens = tuple[Tensor, Tensor]  # prefix (N, P, D): class token, registers; patches (N, L, D)


def _pass(model: nn.Module, images: Tensor, blocks: list[int], has_prefix: bool) -> tuple[Tensor, dict[int, Tokens]]:
    """The output of `forward_features`, and the tokens that leave each of `blocks`, from one pass."""
    if not blocks:
        return model.forward_features(images), {}
    if not has_prefix:
        output, maps = model.forward_intermediates(images, indices=blocks)
        return output, {block: _tokens_of_map(found) for block, found in zip(blocks, maps, strict=True)}
    output, found = model.forward_intermediates(images, indices=blocks, output_fmt="NLC", return_prefix_tokens=True)
    if not model.num_prefix_tokens:  # then timm gives the patches alone
        return output, {block: (patches[:, :0], patches) for block, patches in zip(blocks, found, strict=True)}
    return output, {block: (prefix, patches) for block, (patches, prefix) in zip(blocks, found, strict=True)}


def _final_tokens(model: nn.Module, output: Tensor) -> Tokens:
    """Prefix and patch tokens after the final norm. Where timm applies that norm to the pooled feature, here it is to each token."""
    if output.ndim == 4:
        return _tokens_of_map(output if getattr(model, "output_fmt", "NCHW") != "NHWC" else output.permute(0, 3, 1, 2))
    if isinstance(getattr(model, "fc_norm", None), nn.LayerNorm) and isinstance(model.norm, nn.Identity):
        output = model.fc_norm(output)
    prefix = getattr(model, "num_prefix_tokens", 0)
    return output[:, :prefix], output[:, prefix:]


def _tokens_of_map(found: Tensor) -> Tokens:
    tokens = found.flatten(2).transpose(1, 2)  # (N, D, H, W) -> (N, H W, D)
    return tokens[:, :0], tokens


def _normalised(tokens: Tokens) -> Tokens:
    prefix, patches = (F.layer_norm(_wide(part), part.shape[-1:], eps=NORM_EPS) for part in tokens)
    return prefix, patches


def _summary(kind: str, patches: Tensor) -> Tensor:
    """(N, L, D) -> (N, D): mean, or standard deviation, over the tokens."""
    patches = _wide(patches)
    return patches.mean(dim=1) if kind == "mean" else patches.var(dim=1, correction=0).clamp_min(LEAST_VARIANCE).sqrt()


def _wide(tensor: Tensor) -> Tensor:
    """float32 where autocast made it narrower."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _parse(model: nn.Module, name: str) -> Part:
    """A part from its name, checked against what the model has. Raises UserError."""
    found = re.fullmatch(rf"({'|'.join(KINDS)})(?:@(-?\d{{1,4}}))?", name)
    if not found:
        near = difflib.get_close_matches(name.partition("@")[0], KINDS, n=1, cutoff=0.5)
        raise UserError(f"features: got {name!r}, allowed: {', '.join(KINDS)}, or of an inner block, e.g. mean@-2"
                        + (f"; did you mean {near[0]!r}?" if near else ""))
    kind, number, model_name = found[1], found[2], type(model).__name__
    if number is None:
        if kind != "cls" and not _averages(model):
            raise UserError(f"features: got {name!r}, but {model_name} gives no patch tokens or map to average; use features [\"cls\"]")
        return Part(kind)
    count = len(model.feature_info) if hasattr(model, "forward_intermediates") and getattr(model, "feature_info", None) else 0
    block = int(number) + count * (int(number) < 0)
    if not 0 <= block < count:
        allowed = f"@-{count} to @-1, its {'blocks' if _is_vit(model) else 'stages'}" if count else "no part with @, it has no inner blocks"
        raise UserError(f"features: got {name!r}, allowed for {model_name}: {allowed}")
    if kind == "cls" and (getattr(model, "cls_token", None) is None or not _is_vit(model)):
        raise UserError(f"features: got {name!r}, but {model_name} has no class token there; use mean@{number} or std@{number}")
    return Part(kind, block)


def _width(backbone: Backbone, part: Part) -> int:
    if part.block is not None:
        return backbone.model.feature_info[part.block]["num_chs"]
    return backbone.dim if part.kind == "cls" else backbone.model.num_features


def _is_vit(model: nn.Module) -> bool:
    """Whether the model's blocks work on tokens that timm can give with their prefix; others give maps."""
    found = getattr(model, "forward_intermediates", None)
    return hasattr(model, "num_prefix_tokens") and found is not None and "return_prefix_tokens" in inspect.signature(found).parameters


def _averages(model: nn.Module) -> bool:
    """Whether it is known which outputs are patches: of tokens those behind the prefix, of a map all."""
    return hasattr(model, "num_prefix_tokens") or (hasattr(model, "feature_info") and getattr(model, "cls_token", None) is None)


class TokenBackbone(Backbone):
    """A backbone whose features are joined parts of one pass: images (N, C, H, W) -> (N, dim). It takes over the other's model."""

    def __init__(self, backbone: Backbone, names: Sequence[str]) -> None:
        super().__init__(backbone.model)
        self.weights, self.channels_last = backbone.weights, backbone.channels_last
        self.read = TokenFeatures(backbone, names)
        self.dim = self.read.dim

    def forward(self, images: Tensor) -> Tensor:
        return self.read(self, images)
