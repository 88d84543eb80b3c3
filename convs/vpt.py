"""Visual prompt tuning (Jia et al., ECCV 2022, arXiv 2203.12119): learned tokens beside an image's in a frozen ViT.

    shallow   n tokens enter the first block, go through all blocks and leave after the last
    deep      n new tokens enter every block and leave it again

The tokens are the same for all images and start at 0, as in APER's release. They stand behind the image's tokens, which
attention does not see, and leave before the model reads its feature: pooling and the class token's place stay timm's.
Per image prompts, chosen by a query, are in convs/prompts.py.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from convs.parts import Part
from convs.prompts import check_takes_tokens

TOKENS = 5  # APER


class BlockPrompt(Part):
    """n tokens (n, D) from the start of block `first` to the end of block `last`."""

    kind: ClassVar = "prompts"

    def __init__(self, first: nn.Module, last: nn.Module, tokens: int, like: Tensor) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.zeros(tokens, like.shape[0], device=like.device, dtype=like.dtype))
        first.register_forward_pre_hook(self.enter)
        last.register_forward_hook(self.leave)

    def enter(self, block: nn.Module, args: tuple) -> tuple:
        if not self.on:
            return args
        x = args[0]  # (B, L, D)
        return (torch.cat([x, self.tokens.to(x.dtype).expand(x.shape[0], -1, -1)], dim=1), *args[1:])

    def leave(self, block: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return output[:, : -len(self.tokens)] if self.on else output


def put_vpt(model: nn.Module, *, deep: bool, tokens: int = TOKENS) -> None:
    """Prompt a timm ViT with `tokens` learned tokens, in place; in every block, or in the first alone.

    Raises:
        UserError: the model is no ViT whose blocks take more tokens.
    """
    check_takes_tokens(model, range(len(getattr(model, "blocks", None) or ())), "vpt")
    blocks = list(model.blocks)
    for block in blocks if deep else blocks[:1]:
        block.prompt = BlockPrompt(block, block if deep else blocks[-1], tokens, block.norm1.weight)
