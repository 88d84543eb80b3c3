"""What the prompt methods share: a frozen ViT, prompts and the new task's head trained by Adam, a loss on the prompts.

A parent, not a method. The logits are the new task's own, as in the methods' releases, which mask all others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from convs.backbones import Backbone
from convs.network import IncrementalNet
from convs.prompts import PromptedBackbone, Prompts, check_promptable
from models.base import BaseLearner


class PromptLearner(BaseLearner, ABC):
    """Learner whose backbone is a `PromptedBackbone`; `make_prompts` gives the method's prompts."""

    config: Any  # of one of the prompt methods: all have `prompt_loss_weight`
    frozen_backbone = True
    max_grad_norm: ClassVar[float | None] = 1.0  # the gradient's norm is clipped to this

    def prepare_backbone(self, backbone: Backbone) -> Backbone:
        for key in ("prompt_layers", "g_prompt_layers"):
            check_promptable(backbone.model, getattr(self.config, key, []), key)
        self.prompts = self.make_prompts(self.stream.num_tasks, backbone.dim)
        return PromptedBackbone(backbone, self.prompts)

    @abstractmethod
    def make_prompts(self, num_tasks: int, dim: int) -> Prompts:
        """The method's prompts for features of `dim` dimensions, drawn from the stream (torch_seed, "prompts"). Raises UserError."""

    def begin_task(self, task: int) -> None:
        super().begin_task(task)
        self.prompts.begin_task(task)

    # Training ------------------------------------------------------------------------------------------------

    def training_module(self, task: int) -> nn.Module:
        return PromptTraining(self.net, task)

    def training_loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, prompt_loss = module(images)  # (N, C_t), ()
        targets = labels - self.stream.classes_before(self.task)
        return self.classification_loss(logits, targets) + self.config.prompt_loss_weight * prompt_loss, logits, targets

    def parameter_groups(self, task: int) -> list[dict[str, Any]]:
        """One rate for all; prompts take no weight decay, which would move those of other tasks too."""
        lr = self.config.lr
        return [{"params": list(self.prompts.parameters()), "lr": lr, "weight_decay": 0.0, "name": "prompts"},
                {"params": list(self.net.heads[task].parameters()), "lr": lr, "name": "head"}]

    def make_optimizer(self, task: int) -> torch.optim.Optimizer:
        self.optimizer = torch.optim.Adam(self.parameter_groups(task), weight_decay=self.config.weight_decay)
        return self.optimizer

    def after_backward(self, module: nn.Module) -> None:
        largest = getattr(self.config, "prompt_clip", self.max_grad_norm)
        if largest:
            # an overflow under 16-mixed is the scaler's to skip, a loss that is no number the monitor's to tell
            self.fabric.clip_gradients(module, self.optimizer, max_norm=largest, error_if_nonfinite=False)


class PromptTraining(nn.Module):
    """Stage 1's module: images -> the new task's own logits (N, C_t) and the loss on the prompts ()."""

    def __init__(self, net: IncrementalNet, task: int) -> None:
        super().__init__()
        self.backbone, self.head = cast(PromptedBackbone, net.backbone), net.heads[task]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        prompt, prompt_loss = self.backbone.prompts.for_training(self.backbone.query(images))
        return self.head(self.backbone.prompted(images, prompt)), prompt_loss
