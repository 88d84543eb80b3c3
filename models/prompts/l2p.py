"""L2P: learning to prompt (Wang et al., CVPR 2022, arXiv 2112.08654).

A pool of M prompts P_m (L, D) with keys k_m. An image takes the `prompt_top_k` prompts whose keys are nearest to its
query q by cosine; their tokens go before the image's, and the mean of their outputs is classified.

    loss = cross-entropy + w sum over the chosen (1 - cos(q, k_m))          (paper Eq. 5, w = `prompt_loss_weight`)

Differs from the authors' release: every image chooses for itself in training and in testing (there a whole batch
takes the batch's most frequent choice, which tells the task when batches come from one task); the clipped gradient norm is
that of what trains, there the frozen weights' gradients count too; heads start as all heads here do, there at zero.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from convs.prompts import Prompt, Prompts
from models.prompts.prompting import PromptLearner
from models.registry import learner
from utils.config import MethodSettings
from utils.errors import UserError
from utils.rng import torch_generator

INIT_MAX = 0.01  # prompts and keys start uniform in [0, 0.01), as in the release


class L2PSettings(MethodSettings):
    """The pool."""

    prompt_pool: int = Field(10, ge=1, le=10_000, description="prompts in the pool")
    prompt_length: int = Field(10, ge=1, le=1000, description="tokens of a prompt")
    prompt_top_k: int = Field(4, ge=1, description="prompts that an image takes")
    prompt_layers: list[Annotated[int, Field(ge=0)]] = Field(default_factory=lambda: [0], min_length=1,
        description="blocks with prompts, counted from 0; [0] alone is possible")
    prompt_loss_weight: float = Field(1.0, ge=0.0, description="weight of the loss on keys")


@learner("l2p")
class L2P(PromptLearner):
    Settings = L2PSettings
    title = "L2P"

    def make_prompts(self, num_tasks: int, dim: int) -> Prompts:
        config = self.config
        if config.prompt_top_k > config.prompt_pool:
            raise UserError(f"prompt_top_k: got {config.prompt_top_k}, allowed: 1 to {config.prompt_pool}, the size of prompt_pool")
        if config.prompt_layers != [0]:
            raise UserError(f"prompt_layers: got {config.prompt_layers}, allowed: [0]; L2P's prompts go before the first block")
        return PromptPool(config.prompt_pool, config.prompt_length, config.prompt_top_k, dim, torch_generator(config.torch_seed, "prompts"))


class PromptPool(Prompts):
    """M prompts (M, L, D) and their keys (M, D)."""

    def __init__(self, pool: int, length: int, top_k: int, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.top_k = top_k
        self.tokens = nn.Parameter(torch.rand(pool, length, dim, generator=generator) * INIT_MAX)
        self.keys = nn.Parameter(torch.rand(pool, dim, generator=generator) * INIT_MAX)

    def choose(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and numbers of the nearest keys, (B, top_k) each."""
        return (F.normalize(query) @ F.normalize(self.keys).T).topk(self.top_k, dim=1)

    def forward(self, query: Tensor) -> Prompt:
        return self.for_training(query)[0]

    def for_training(self, query: Tensor) -> tuple[Prompt, Tensor]:
        cosines, chosen = self.choose(query)
        tokens = self.tokens[chosen].flatten(1, 2)  # (B, top_k, L, D) -> (B, top_k L, D)
        return Prompt(tokens=tokens), (1 - cosines).sum(dim=1).mean()
