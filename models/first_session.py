"""First-session adaptation: a part is put on the backbone, trained in the first task, then frozen (APER, arXiv 2303.07338).

Parents, not methods: the setting `first_session` is "none" by default. The first task trains the part and a head of its own
classes, at one rate that falls by a cosine to 0; then the backbone is frozen.

    AdaptsFirst     what puts the part on, trains and freezes it; methods that keep Gaussians have it too
    FirstSession    methods on a frozen backbone without heads: the head is dropped after the first task, and so are the
                    images of stage 1 in every later task. RanPAC calls it phase 1
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from convs.backbones import Backbone
from convs.first_session import Kind, adapt
from convs.heads import HeadFactory, cosine_head, linear_head
from models.base import BaseLearner
from models.shared_features import PLAIN, of_parent
from models.stage1 import AfterEpoch, TrainingState
from utils.config import MethodSettings, Strict
from utils.formulas.schedules import cosine
from utils.rng import torch_generator
from utils.run.monitor import Monitor

Part = Literal["none", "adapter", "ssf", "vpt", "vpt_shallow", "vpt_deep", "full", "lora"]


class PartSettings(Strict):
    """What is adapted in the first task; `epochs`, `lr` and `weight_decay` are those of that training."""

    first_session: Part = Field("none",
        description="what the first task adapts before all is frozen: none, adapter (beside each MLP), ssf (scale and shift), "
        "vpt_shallow or vpt_deep (prompts; vpt means vpt_deep), lora (on q and v) or full (the whole backbone)")
    adapter_width: int = Field(64, ge=1, le=100_000, description="width of an adapter's bottleneck (APER: 64)")
    vpt_tokens: int = Field(5, ge=1, le=100_000, description="prompt tokens, with vpt_deep in every block (APER: 5)")
    lora_rank: int = Field(4, ge=1, le=100_000, description="rank of the LoRA factors")


class AdaptsFirst(BaseLearner):
    """A learner whose backbone may be adapted in the first task and frozen afterwards."""

    config: Any  # of a method that has `PartSettings` among its settings
    adapted: frozenset[str] = frozenset()  # names in the timm model of what trains in the first task

    def adapts(self, task: int) -> bool:
        """Whether `task` trains the part that `first_session` names."""
        return task == 0 and self.config.first_session != "none"

    def prepare_backbone(self, backbone: Backbone) -> Backbone:
        c = self.config
        kind: Kind = "vpt_deep" if c.first_session == "vpt" else c.first_session
        self.adapted = frozenset(adapt(backbone, kind, width=c.adapter_width, tokens=c.vpt_tokens, rank=c.lora_rank,
                                       generator=torch_generator(c.torch_seed, "first session")))
        return backbone

    def trains(self, name: str) -> bool:
        return super().trains(name) if self.config.first_session == "none" else name in self.adapted

    def train(self, task: int, monitor: Monitor, start: TrainingState | None = None, after_epoch: AfterEpoch | None = None) -> None:
        super().train(task, monitor, start, after_epoch)
        self.end_first_session()

    def load_network_state(self, state: Mapping[str, Tensor], task: int) -> None:
        super().load_network_state(state, task)
        self.end_first_session()

    def end_first_session(self) -> None:
        """From here on the backbone is frozen; nothing where no part was adapted."""
        if self.config.first_session != "none":
            self.net.backbone.requires_grad_(False)

    def parameter_groups(self, task: int) -> list[dict[str, Any]]:
        """One rate for the part and the head in the first session."""
        if not self.adapts(task):
            return super().parameter_groups(task)
        lr = self.config.lr
        return [*self.backbone_groups(lr), {"params": list(self.net.heads[task].parameters()), "lr": lr, "name": "head"}]

    def learning_rate(self, base_lr: float, epoch: int) -> float:
        return cosine(base_lr, epoch, self.config.epochs) if self.adapts(self.task) else super().learning_rate(base_lr, epoch)


class FirstSessionSettings(PartSettings, MethodSettings):
    """The part, and the head that is dropped afterwards."""

    first_session_head: Literal["cosine", "linear"] = Field("cosine",
        description="head of the first session: cosine with a learned scale (APER), or linear")


class FirstSession(AdaptsFirst):
    """A learner on a frozen backbone, without heads but in the first task of an adaptation."""

    Settings = FirstSessionSettings
    config: FirstSessionSettings
    frozen_backbone = True
    has_heads = False  # an instance has one while it adapts

    @classmethod
    def title_of(cls, config: FirstSessionSettings) -> str:
        return cls.title if config.first_session == "none" else f"{cls.title}, first session: {config.first_session}"

    def head_factory(self) -> HeadFactory:
        return linear_head if self.config.first_session_head == "linear" else partial(cosine_head, learned=True)

    def begin_task(self, task: int) -> None:
        self.has_heads = self.adapts(task)
        super().begin_task(task)

    def end_first_session(self) -> None:
        """Nothing trains any more, and the head has done its work."""
        self.has_heads = False
        self.net.heads, self.net.head_scales = nn.ModuleList(), []
        self.net.backbone.requires_grad_(False)

    def feature_recipe(self) -> Mapping[str, Any] | None:
        return PLAIN if of_parent(self, FirstSession) and self.config.first_session == "none" else None

    def planned_images(self, task: int, new: float) -> float:
        return new if self.adapts(task) else 0.0
