"""What the methods of this folder share: an adapter per task on a frozen ViT, of which the new task's trains with its head.

A parent, not a method. All adapters are made at the start, from named random numbers; a new one changes nothing until it
trains. `features` gives the features of several passes side by side, one per adapter, which `scores` takes apart again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from convs.adapters import Adapters, put_adapters
from convs.backbones import Backbone
from convs.parts import features_of_passes
from models import evaluation
from models.base import BaseLearner
from utils.config import MethodSettings
from utils.formulas.schedules import cosine
from utils.rng import torch_generator

PassName = int | str | None  # an adapter by its task or name; None: the pre-trained backbone


class AdapterSettings(MethodSettings):
    """The adapters."""

    adapter_width: int = Field(64, ge=1, le=100_000, description="width of an adapter's bottleneck (EASE: 64)")


class AdapterPerTask(BaseLearner):
    """Learner whose task t trains adapter t."""

    Settings = AdapterSettings
    config: AdapterSettings
    frozen_backbone = True
    scores_are_logits = False

    def __init__(self, *args, **kwargs) -> None:
        self.chosen_passes: list[PassName] | None = None  # of `features`, while statistics need fewer than a prediction
        super().__init__(*args, **kwargs)

    @property
    def adapters(self) -> Adapters:
        return Adapters(self.net.backbone.model)  # looked up each time: an export works on a copy of the network

    def prepare_backbone(self, backbone: Backbone) -> Backbone:
        adapters = put_adapters(backbone.model, self.config.adapter_width)
        for task in range(self.stream.num_tasks):
            adapters.add(task, torch_generator(self.config.torch_seed, "adapter", task))
        adapters.select(0)
        return backbone

    def trains(self, name: str) -> bool:
        return f".adapters.{max(self.task, 0)}." in name

    def begin_task(self, task: int) -> None:
        super().begin_task(task)
        self.use_adapter_of(task)

    def use_adapter_of(self, task: int) -> None:
        """From now on adapter `task` acts in a plain pass, and it alone trains."""
        self.adapters.select(task)
        self.choose_trained()

    # Training ------------------------------------------------------------------------------------------------

    def parameter_groups(self, task: int) -> list[dict[str, Any]]:
        lr = self.config.lr
        return [*self.backbone_groups(lr, name="adapter"), {"params": list(self.net.heads[task].parameters()), "lr": lr, "name": "head"}]

    def learning_rate(self, base_lr: float, epoch: int) -> float:
        return cosine(base_lr, epoch, self.config.epochs)

    # Several passes ------------------------------------------------------------------------------------------

    def prediction_passes(self) -> list[PassName]:
        """The passes that a prediction takes, in the order in which `scores` expects their features; each task's adapter here."""
        return list(range(self.task + 1))

    @property
    def passes(self) -> list[PassName]:
        return self.prediction_passes() if self.chosen_passes is None else self.chosen_passes

    @property
    def feature_dim(self) -> int:
        return len(self.passes) * self.net.backbone.dim

    def features(self, images: Tensor) -> Tensor:
        """One pass per adapter, side by side: images (N, C, H, W) -> (N, P D)."""
        return features_of_passes(self.net.features, images, [self.adapters.using(name) for name in self.passes])

    def split_passes(self, features: Tensor) -> Tensor:
        """(N, P D) -> (N, P, D)."""
        return features.unflatten(1, (len(self.passes), -1))

    def training_features(self, task: int, passes: list[PassName]) -> tuple[list[Tensor], Tensor]:
        """Features (N, D) of the task's training images under the test transform for each of `passes`, and their labels (N,)."""
        with self.only(passes):
            features, labels = evaluation.extract_pass(self, "train", tasks=task)
            return list(self.split_passes(features).unbind(1)), labels

    @contextmanager
    def only(self, passes: list[PassName]) -> Iterator[None]:
        """Inside, `features` takes these passes."""
        self.chosen_passes = passes
        try:
            yield
        finally:
            self.chosen_passes = None

    def tasks_of_classes(self) -> Tensor:
        """Task in which each class seen so far came in, (K,)."""
        return torch.as_tensor(self.stream.task_of_class[: self.stream.classes_upto(self.task)], device=self.fabric.device)

    # State ---------------------------------------------------------------------------------------------------

    def load_network_state(self, state: Mapping[str, Tensor], task: int) -> None:
        super().load_network_state(state, task)
        self.use_adapter_of(task)  # which one acts is not in the state
