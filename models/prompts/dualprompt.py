"""DualPrompt: general and expert prompts (Wang et al., ECCV 2022, arXiv 2204.04799).

G-prompts, shared by all tasks, are prefixes of the first blocks' attention; E-prompts, one set per task with a key k_t,
of the blocks after them. In training the task's own E-prompt is used, in testing that of the key nearest to the query q.

    loss = cross-entropy + w (1 - cos(q, k_t))                              (paper Eq. 5, w = `prompt_loss_weight`)

Differs from the authors' release: each test image chooses for itself (there batches may choose together), among the
tasks seen so far; heads start as all heads here do, there at zero. As there, a new task's E-prompt starts as the one before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from convs.prompts import Prompt, Prompts
from models.prompts.prompting import PromptLearner
from models.registry import learner
from utils.config import MethodSettings
from utils.rng import torch_generator

INIT_MAX = 0.01  # prompts and keys start uniform in [0, 0.01), as in the release


class DualPromptSettings(MethodSettings):
    """General and expert prompts."""

    prompt_length: int = Field(5, ge=1, le=1000, description="keys, and values, of an E-prompt (its ImageNet-R: 20)")
    prompt_layers: list[Annotated[int, Field(ge=0)]] = Field(default_factory=lambda: [2, 3, 4], min_length=1,
        description="blocks with E-prompts, counted from 0")
    g_prompt_length: int = Field(5, ge=1, le=1000, description="keys, and values, of a G-prompt")
    g_prompt_layers: list[Annotated[int, Field(ge=0)]] = Field(default_factory=lambda: [0, 1],
        description="blocks with G-prompts, counted from 0")
    prompt_loss_weight: float = Field(1.0, ge=0.0, description="weight of the loss on keys")


@learner("dualprompt")
class DualPrompt(PromptLearner):
    Settings = DualPromptSettings
    title = "DualPrompt"

    def make_prompts(self, num_tasks: int, dim: int) -> Prompts:
        config = self.config
        return DualPrompts(num_tasks, dim, e_length=config.prompt_length, e_layers=config.prompt_layers, g_length=config.g_prompt_length,
                           g_layers=config.g_prompt_layers, generator=torch_generator(config.torch_seed, "prompts"))

    def grown(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """E-prompts and keys have a row per task: those of the tasks to come are new."""
        grown = super().grown(state)
        for name, own in self.net.state_dict().items():
            if name.endswith((".e_prompts", ".keys")):
                grown[name] = torch.cat([grown[name], own[len(grown[name]):].to(grown[name])])
        return grown


class DualPrompts(Prompts):
    """E-prompts (T, layers, 2, L_e, D) with keys (T, D), G-prompts (layers, 2, L_g, D)."""

    def __init__(self, num_tasks: int, dim: int, *, e_length: int, e_layers: Sequence[int], g_length: int, g_layers: Sequence[int],
                 generator: torch.Generator) -> None:
        super().__init__()
        self.e_layers, self.g_layers = list(e_layers), list(g_layers)
        self.g_prompts = nn.Parameter(torch.rand(len(g_layers), 2, g_length, dim, generator=generator) * INIT_MAX)
        self.e_prompts = nn.Parameter(torch.rand(num_tasks, len(e_layers), 2, e_length, dim, generator=generator) * INIT_MAX)
        self.keys = nn.Parameter(torch.rand(num_tasks, dim, generator=generator) * INIT_MAX)

    @torch.no_grad()
    def begin_task(self, task: int) -> None:
        super().begin_task(task)
        if task > 0:
            self.e_prompts[task] = self.e_prompts[task - 1]

    def cosines(self, query: Tensor) -> Tensor:
        """Cosine of each query with the key of each task seen so far (B, t + 1)."""
        return F.normalize(query) @ F.normalize(self.keys[: self.task + 1]).T

    def forward(self, query: Tensor) -> Prompt:
        return self.prompt_of_tasks(self.cosines(query).argmax(dim=1))

    def for_training(self, query: Tensor) -> tuple[Prompt, Tensor]:
        own = torch.full((len(query),), self.task, device=query.device)
        return self.prompt_of_tasks(own), (1 - self.cosines(query)[:, self.task]).mean()

    def prompt_of_tasks(self, tasks: Tensor) -> Prompt:
        """G-prompts and the E-prompts of `tasks` (B,); where a block has both, one after the other."""
        prefixes = {block: prefix.expand(len(tasks), -1, -1, -1) for block, prefix in zip(self.g_layers, self.g_prompts, strict=True)}
        for block, prefix in zip(self.e_layers, self.e_prompts[tasks].unbind(dim=1), strict=True):
            prefixes[block] = torch.cat([prefixes[block], prefix], dim=2) if block in prefixes else prefix
        return Prompt(prefixes=prefixes)
