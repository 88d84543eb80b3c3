"""MOS: merged adapters, and a prediction that refines its own task (Sun et al., AAAI 2025, arXiv 2412.09441).

    training     adapter t goes on from adapter t - 1; cross-entropy on the task's own logits + w CE(M M' / 0.8, identity),
                 M the old classes' means and the batch's features, w = `mos_orthogonality`
    merging      after each step theta <- (1 - a) theta + a mean(earlier adapters), a = `mos_merge`
    alignment    all heads on features drawn from the classes' Gaussians
    prediction   class of the nearest pre-trained class mean -> the adapter of its task -> that adapter's best class -> ... until
                 the task stays, four adapters at most: logits z
    scores       softmax(z) + softmax((t + 1) cosines with the pre-trained class means)

t + 2 passes per image. The formulas are in utils/formulas/passes.py.

Differs from the authors' code: there the merging works in place in every block's forward pass, in tests too; here it follows
each step of the optimiser, as described. M is of the images that one process sees at once: with several processes, or with
`accumulate`, each part of a batch has its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from convs.network import OwnTaskWithFeatures
from convs.states import mean_state
from models.adapters.aligned import AlignedAdapters, AlignedSettings
from models.adapters.per_task import PassName
from models.base import FLOAT_BYTES
from models.frozen.ncm import class_means, never_without_images
from models.registry import learner
from utils.formulas.passes import mos_probabilities, orthogonality, self_refined


class MOSSettings(AlignedSettings):
    """Loss and merging."""

    mos_orthogonality: float = Field(0.1, ge=0.0, description="mos: weight w of the loss that keeps features apart (0.1)")
    mos_merge: float = Field(0.1, ge=0.0, le=1.0, description="mos: share a of the earlier adapters' mean after each step (0.1)")
    mos_head_lrscale: float = Field(0.1, gt=0.0, le=100.0, description="mos: the head's learning rate as a multiple of lr (0.1)")


@learner("mos")
class MOS(AlignedAdapters):
    Settings = MOSSettings
    title = "MOS"

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.class_means = torch.empty(0, self.net.backbone.dim, device=self.fabric.device)  # (K, D) pre-trained, grows per task

    # Training ------------------------------------------------------------------------------------------------

    def training_module(self, task: int) -> nn.Module:
        self.old_means = self.gaussians.means() if task > 0 else self.class_means  # (K_old, D), fixed while the task trains
        return OwnTaskWithFeatures(self.net, task)

    def training_loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, features = module(images)  # (N, C_t), (N, D)
        targets = labels - self.stream.classes_before(self.task)
        loss = self.classification_loss(logits, targets)
        return loss + self.config.mos_orthogonality * orthogonality(torch.cat([self.old_means, features.float()])), logits, targets

    def parameter_groups(self, task: int) -> list[dict[str, Any]]:
        *adapter, head = super().parameter_groups(task)
        return [*adapter, {**head, "lr": self.config.lr * self.config.mos_head_lrscale}]

    def make_optimizer(self, task: int) -> torch.optim.Optimizer:
        """SGD whose every step is followed by the merging."""
        optimizer = super().make_optimizer(task)
        if task > 0 and self.config.mos_merge > 0:
            earlier = mean_state([self.adapters.state(t) for t in range(task)])
            own = self.adapters.state(task)
            optimizer.register_step_post_hook(lambda *_: merge(own, earlier, self.config.mos_merge))
        return optimizer

    # Statistics and prediction -------------------------------------------------------------------------------

    def statistics_passes(self, task: int) -> list[PassName]:
        return [task, None]

    def add_statistics(self, features: list[Tensor], labels: Tensor, classes: range) -> None:
        super().add_statistics(features, labels, classes)
        self.class_means = torch.cat([self.class_means, class_means(features[1], labels, classes)])

    def prediction_passes(self) -> list[PassName]:
        """The pre-trained backbone, then every task's adapter."""
        return [None, *super().prediction_passes()]

    def scores(self, features: Tensor) -> Tensor:
        """Sums of two softmaxes (N, K)."""
        pretrained, *adapted = self.split_passes(features).unbind(1)
        cosines = never_without_images(F.normalize(pretrained) @ F.normalize(self.class_means).T)  # (N, K)
        logits = self.logits(torch.stack(adapted, dim=1))  # (N, t + 1, K)
        refined = self_refined(cosines.argmax(dim=1), logits, self.tasks_of_classes())
        return mos_probabilities(refined, cosines, self.task + 1)

    # State ---------------------------------------------------------------------------------------------------

    def extra_state(self) -> dict[str, Tensor]:
        return {**super().extra_state(), "class_means": self.class_means}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_extra_state(state)
        self.class_means = state["class_means"]

    def planned_statistics(self, classes: int, images_per_class: int | None) -> int:
        return super().planned_statistics(classes, images_per_class) + classes * self.net.backbone.dim * FLOAT_BYTES

    def memory_bytes(self) -> dict[str, int]:
        kept = super().memory_bytes()
        return {**kept, "statistics": kept["statistics"] + self.class_means.nbytes}


@torch.no_grad()
def merge(own: Mapping[str, Tensor], earlier: Mapping[str, Tensor], share: float) -> None:
    """theta <- (1 - a) theta + a `earlier`, in place, a = `share`."""
    for name, tensor in own.items():
        tensor.lerp_(earlier[name], share)
