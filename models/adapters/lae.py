"""LAE: an online adapter that learns and an offline one that follows it slowly (Gao et al., ICCV 2023, arXiv 2303.10070).

    learning        one online adapter goes on through all tasks with the new head, by cross-entropy of the head's own logits; in
                    later tasks it rests for the first `lae_freeze_epochs` epochs, while the head alone learns
    accumulation    the offline adapter begins as the online one after the first task, then off <- d off + (1 - d) on after every step
    ensemble        the larger of the two softmaxes, class by class; two passes per image from the second task on

Differs from the authors' code: the adapters are beside the MLPs, with ReLU, of the first blocks; there beside attention, with GELU. Of its
three kinds (adapter, LoRA, prefix) this is the adapter, without dropout and with scale 1, as there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from convs.adapters import Adapters, put_adapters
from convs.backbones import Backbone
from convs.parts import features_of_passes
from models.base import BaseLearner
from models.registry import learner
from utils.config import MethodSettings
from utils.errors import UserError
from utils.formulas.passes import larger_softmax
from utils.rng import torch_generator
from utils.run.monitor import Monitor

ONLINE, OFFLINE = "online", "offline"


class LAESettings(MethodSettings):
    """The adapters and how the offline one follows."""

    adapter_width: int = Field(5, ge=1, le=100_000, description="width of the adapters' bottleneck")
    lae_blocks: int = Field(5, ge=1, description="blocks with an adapter, the first ones (authors' code: 5 of 12)")
    lae_decay: float = Field(0.9999, ge=0.0, le=1.0, description="d of the moving average, per step (authors' code)")
    lae_freeze_epochs: int = Field(3, ge=0,
        description="epochs of every later task in which the online adapter rests (authors' code: 3 of 5; ImageNet-R 30 of 50)")
    lae_predict: Literal["both", "online", "offline"] = Field("both",
        description="whose softmax decides: both (the larger of the two), or one of them alone")


@learner("lae")
class LAE(BaseLearner):
    Settings = LAESettings
    title = "LAE"
    scores_are_logits = False
    defaults: ClassVar = {"bcb_lrscale": 1.0, "lr": 0.0028125, "weight_decay": 0.0}

    def prepare_backbone(self, backbone: Backbone) -> Backbone:
        c = self.config
        put_adapters(backbone.model, c.adapter_width, scale=1.0, dropout=0.0)
        adapters = self.adapters_of(backbone.model)
        adapters.add(ONLINE, torch_generator(c.torch_seed, "adapter"))
        adapters.select(ONLINE)
        return backbone

    def adapters_of(self, model: nn.Module) -> Adapters:
        """Those of the first `lae_blocks` blocks. Raises UserError if there are fewer."""
        adapters = Adapters(model)
        if self.config.lae_blocks > len(adapters.blocks):
            raise UserError(f"lae_blocks: got {self.config.lae_blocks}, allowed: 1 to {len(adapters.blocks)}, the blocks of this backbone")
        adapters.blocks = adapters.blocks[: self.config.lae_blocks]
        return adapters

    @property
    def adapters(self) -> Adapters:
        return self.adapters_of(self.net.backbone.model)

    # Training ------------------------------------------------------------------------------------------------

    def trains(self, name: str) -> bool:
        return super().trains(name) and f".adapters.{ONLINE}." in name

    def begin_task(self, task: int) -> None:
        super().begin_task(task)
        adapters = self.adapters
        if task > 0 and OFFLINE not in adapters.names:
            adapters.load(OFFLINE, adapters.state(ONLINE))
        self.choose_trained()

    @property
    def rests(self) -> bool:
        """Whether the online adapter does not learn in this epoch."""
        return self.task > 0 and self.epoch < self.config.lae_freeze_epochs

    def after_backward(self, module: nn.Module) -> None:
        if self.rests:
            for parameter in self.adapters.parameters(ONLINE):
                parameter.grad = None  # the optimiser passes over it; its gradient was needed where processes exchange theirs

    def make_optimizer(self, task: int) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(self.parameter_groups(task), weight_decay=self.config.weight_decay)
        if task > 0:
            optimizer.register_step_post_hook(lambda *_: self.accumulate())
        return optimizer

    @torch.no_grad()
    def accumulate(self) -> None:
        """off <- d off + (1 - d) on."""
        adapters = self.adapters
        for offline, online in zip(adapters.parameters(OFFLINE), adapters.parameters(ONLINE), strict=True):
            offline.lerp_(online, 1 - self.config.lae_decay)

    # Prediction ----------------------------------------------------------------------------------------------

    def features(self, images: Tensor) -> Tensor:
        """(N, D) under the online adapter; from the second task on the offline one's beside it, (N, 2 D)."""
        adapters = self.adapters
        if OFFLINE not in adapters.names:
            return super().features(images)
        return features_of_passes(super().features, images, [adapters.using(ONLINE), adapters.using(OFFLINE)])

    @property
    def feature_dim(self) -> int:
        return self.net.backbone.dim * (2 if OFFLINE in self.adapters.names else 1)

    def scores(self, features: Tensor) -> Tensor:
        """The larger softmax of the two, (N, K)."""
        first, *second = (self.net.classify(part) for part in features.split(self.net.backbone.dim, dim=1))
        if not second or self.config.lae_predict == ONLINE:
            return first.softmax(dim=1)
        return second[0].softmax(dim=1) if self.config.lae_predict == OFFLINE else larger_softmax(first, second[0])

    def to_probabilities(self, scores: Tensor) -> Tensor:
        folded = self.fold_domains(scores)
        return folded / folded.sum(dim=1, keepdim=True)

    def judge_held_out(self, task: int, monitor: Monitor) -> None:
        """Scores are probabilities."""

    # State ---------------------------------------------------------------------------------------------------

    def load_network_state(self, state: Mapping[str, Tensor], task: int) -> None:
        super().load_network_state(state, task)
        self.choose_trained()  # the offline adapter, which the state made, never trains
