"""L2P: learning to prompt (Wang et al., CVPR 2022, arXiv 2112.08654).

A pool of M prompts P_m (L, D) with keys k_m. An image takes the `prompt_top_k` prompts whose keys are nearest to its
query q by cosine; their tokens go before the image's, and the mean of their outputs is classified.

    loss = cross-entropy + w sum over the chosen (1 - cos(q, k_m))          (paper Eq. 5, w = `prompt_loss_weight`)

Differs from the releases: every image chooses for itself in training and in testing (in the authors' a whole batch takes the
batch's most frequent choice, which tells the task when batches come from one task); the clipped gradient norm is that of
what trains, in the authors' the frozen weights' gradients count too.

Four details are settings, since the releases differ:

                                    authors' (google-research/l2p at 3e102b0)   LAMDA-PILOT (ff60745, dfde6c0, 3450184)
    `prompt_init`                   "authors": uniform in [0, 0.01)             "pilot": uniform in [-1, 1)
    `prompt_position`               "none": prompts come after the positions    "class": the class token's position embedding
    `prompt_clip`                   1                                           0: no clipping
    `prompt_head_init`              "zero"                                      "normal": standard deviation 0.02

The defaults are the authors' but for the heads (exps/l2p_cifar.json sets all four).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from convs.backbones import Backbone
from convs.prompts import Prompt, Prompts, check_class_position
from models.prompts.prompting import PromptLearner
from models.registry import learner
from utils.config import MethodSettings
from utils.errors import UserError
from utils.rng import torch_generator

INIT_RANGES = {"authors": (0.0, 0.01), "pilot": (-1.0, 1.0)}  # prompts and keys start uniform in these


class L2PSettings(MethodSettings):
    """The pool."""

    prompt_pool: int = Field(10, ge=1, le=10_000, description="prompts in the pool")
    prompt_length: int = Field(10, ge=1, le=1000, description="tokens of a prompt")
    prompt_top_k: int = Field(4, ge=1, description="prompts that an image takes")
    prompt_layers: list[Annotated[int, Field(ge=0)]] = Field(default_factory=lambda: [0], min_length=1,
        description="blocks with prompts, counted from 0; [0] alone is possible")
    prompt_loss_weight: float = Field(1.0, ge=0.0, description="weight of the loss on keys")
    prompt_init: Literal["authors", "pilot"] = Field("authors",
        description="prompts and keys start uniform in [0, 0.01), as in the authors' release, or in [-1, 1), as in LAMDA-PILOT")
    prompt_position: Literal["none", "class"] = Field("none", description="position embedding of prompt tokens: none, as in the authors' "
        "release, or the class token's, as in LAMDA-PILOT")
    prompt_clip: float = Field(1.0, ge=0.0,
        description="the gradient's norm is clipped to this (authors' release: 1); 0, as in LAMDA-PILOT: not clipped")
    prompt_head_init: Literal["normal", "zero"] = Field("normal",
        description="new heads start normal with standard deviation 0.02, as in LAMDA-PILOT, or at 0, as in the authors' release")


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
        pool = PromptPool(config.prompt_pool, config.prompt_length, config.prompt_top_k, dim, torch_generator(config.torch_seed, "prompts"),
                          INIT_RANGES[config.prompt_init])
        pool.at_class_position = config.prompt_position == "class"
        return pool

    def prepare_backbone(self, backbone: Backbone) -> Backbone:
        if self.config.prompt_position == "class":
            check_class_position(backbone.model, "prompt_position")
        return super().prepare_backbone(backbone)

    def begin_task(self, task: int) -> None:
        super().begin_task(task)
        if self.config.prompt_head_init == "zero":
            nn.init.zeros_(self.net.heads[task].weight)


class PromptPool(Prompts):
    """M prompts (M, L, D) and their keys (M, D)."""

    def __init__(self, pool: int, length: int, top_k: int, dim: int, generator: torch.Generator,
                 start: tuple[float, float] = INIT_RANGES["authors"]) -> None:
        super().__init__()
        self.top_k = top_k
        low, high = start
        self.tokens = nn.Parameter(low + torch.rand(pool, length, dim, generator=generator) * (high - low))
        self.keys = nn.Parameter(low + torch.rand(pool, dim, generator=generator) * (high - low))

    def choose(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and numbers of the nearest keys, (B, top_k) each."""
        return (F.normalize(query) @ F.normalize(self.keys).T).topk(self.top_k, dim=1)

    def forward(self, query: Tensor) -> Prompt:
        return self.for_training(query)[0]

    def for_training(self, query: Tensor) -> tuple[Prompt, Tensor]:
        cosines, chosen = self.choose(query)
        tokens = self.tokens[chosen].flatten(1, 2)  # (B, top_k, L, D) -> (B, top_k L, D)
        return Prompt(tokens=tokens), (1 - cosines).sum(dim=1).mean()
