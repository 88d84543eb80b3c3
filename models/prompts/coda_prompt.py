"""CODA-Prompt: prompts as attention-weighted sums of components (Smith et al., CVPR 2023, arXiv 2211.13218).

In each prompted block M components P_m (L, D) with keys K_m and attention vectors A_m:

    p(q) = sum_m cos(q * A_m, K_m) P_m                                      (paper Eq. 3-5; * is elementwise)
    loss = cross-entropy + w sum over blocks and B in {K, A, P} of mean((B B' - I)^2)   (Eq. 6-7, w = `prompt_loss_weight`)

The first half of p are keys, the second half values of the block's attention. Each task trains M / T components of its
own; earlier ones are frozen, later ones take no part. Nothing is chosen, so nothing can leak.

As in the release (GT-RIPL/CODA-Prompt at 22948d2): the rate falls as lr cos(99 pi k / (200 (K - 1))) in epoch k of K; the
orthogonality loss is the mean of squares. There w = 0.1 meets a factor 1e-6 inside the loss: 1e-7 in all, the default here.
A later version of the release makes each task's components orthogonal to the older ones when it begins, and takes w = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from convs.prompts import Prompt, Prompts
from models.prompts.prompting import PromptLearner
from models.registry import learner
from utils.config import MethodSettings
from utils.errors import UserError
from utils.formulas.schedules import cosine_99
from utils.rng import torch_generator


class CODAPromptSettings(MethodSettings):
    """Components."""

    prompt_pool: int = Field(100, ge=1, le=10_000, description="components of all tasks together")
    prompt_length: int = Field(8, ge=1, le=1000, description="keys and values of a prompt together")
    prompt_layers: list[Annotated[int, Field(ge=0)]] = Field(default_factory=lambda: [0, 1, 2, 3, 4], min_length=1,
        description="blocks with prompts, counted from 0")
    prompt_loss_weight: float = Field(1e-7, ge=0.0, description="weight of the orthogonality loss")


@learner("coda_prompt")
class CODAPrompt(PromptLearner):
    Settings = CODAPromptSettings
    title = "CODA-Prompt"
    not_extended: ClassVar = "its prompt components were shared out among the tasks planned at the start, and none is left"
    max_grad_norm = None

    def make_prompts(self, num_tasks: int, dim: int) -> Prompts:
        config = self.config
        if config.prompt_pool < num_tasks:
            raise UserError(f"prompt_pool: got {config.prompt_pool}, allowed: at least {num_tasks}, one component for each task")
        if config.prompt_length % 2:
            raise UserError(f"prompt_length: got {config.prompt_length}, allowed: an even number; one half are keys, the other half values")
        return Components(config.prompt_pool, num_tasks, config.prompt_length, config.prompt_layers, dim,
                          torch_generator(config.torch_seed, "prompts"))

    def learning_rate(self, base_lr: float, epoch: int) -> float:
        return cosine_99(base_lr, epoch, self.config.epochs)


class Components(Prompts):
    """Components (layers, M, L, D), keys and attention vectors (layers, M, D); each layer starts orthogonal."""

    def __init__(self, pool: int, num_tasks: int, length: int, layers: Sequence[int], dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.layers, self.pool, self.num_tasks = list(layers), pool, num_tasks
        self.components = nn.Parameter(torch.empty(len(layers), pool, length, dim))
        self.keys, self.attention = (nn.Parameter(torch.empty(len(layers), pool, dim)) for _ in range(2))
        for parameter in (self.components, self.keys, self.attention):
            for layer in parameter.data:
                nn.init.orthogonal_(layer, generator=generator)

    def count(self, tasks: int) -> int:
        """Components of the first `tasks` tasks together."""
        return self.pool * tasks // self.num_tasks

    def forward(self, query: Tensor) -> Prompt:
        seen = self.count(self.task + 1)
        return self.prompt(query, self.components[:, :seen], self.keys[:, :seen], self.attention[:, :seen])

    def for_training(self, query: Tensor) -> tuple[Prompt, Tensor]:
        old, seen = self.count(self.task), self.count(self.task + 1)
        parts = [torch.cat([p[:, :old].detach(), p[:, old:seen]], dim=1) for p in (self.components, self.keys, self.attention)]
        return self.prompt(query, *parts), sum(orthogonality(layer.flatten(1)) for part in parts for layer in part)

    def prompt(self, query: Tensor, components: Tensor, keys: Tensor, attention: Tensor) -> Prompt:
        """The weighted sums, (B, L, D) per layer, halved into keys and values (B, 2, L / 2, D)."""
        prefixes = {}
        for block, p, k, a in zip(self.layers, components, keys, attention, strict=True):
            weights = component_weights(query, k, a)  # (B, m)
            prefixes[block] = torch.einsum("bm,mld->bld", weights, p).unflatten(1, (2, -1))
        return Prompt(prefixes=prefixes)


def component_weights(query: Tensor, keys: Tensor, attention: Tensor) -> Tensor:
    """cos(q * A_m, K_m), (B, m). Args: query (B, D); keys, attention (m, D)."""
    attended = F.normalize(query[:, None] * attention, dim=2)  # (B, m, D)
    return torch.einsum("bmd,md->bm", attended, F.normalize(keys, dim=1))


def orthogonality(rows: Tensor) -> Tensor:
    """mean((B B' - I)^2) of the rows (m, D)."""
    return (rows @ rows.T - torch.eye(len(rows), device=rows.device)).square().mean()
