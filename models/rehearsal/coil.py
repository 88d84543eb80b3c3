"""COIL: co-transport for class-incremental learning (Zhou, Ye and Zhan, ACM MM 2021, arXiv 2107.12654).

Classifiers travel between old and new classes along an optimal transport plan: its costs are the distances between class
means, so a class sends its weights to the classes that look like it.

- Prospective: the new head starts from the old heads' weights transported to the new classes, and in the first epochs
  its outputs are held near those of the transported classifier.
- Retrospective: the new head's weights transported to the old classes must, on the current features, agree with the old
  network; its weight grows with the epochs as (e / E)^2.
- Beside them lambda KD + (1 - lambda) CE, lambda the old classes' share.

Differs from the authors' code: linear heads instead of a cosine classifier, so transported weights take the mean length
of the weights they came from; old class means come from the memory (there from all old images); Euclidean distances
(3-norm there); both marginals are uniform whatever the task sizes;
new class means, also of the coming task, are taken from that task's images when it begins; the retrospective plan is
renewed every epoch (every 30 steps there); transport losses apply as their weights say, with no switch after epoch 1.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import ot
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from convs.network import IncrementalNet
from models.all_heads import DistillationSettings, OldNetwork
from models.registry import learner
from models.rehearsal.memory import Rehearsal, RehearsalSettings, exemplar_means
from utils.formulas.losses import distillation

FADE_EPOCHS = 2  # the prospective loss has the weight max(0, 1 - (e / 2)^2)


class COILSettings(DistillationSettings, RehearsalSettings):
    """Distillation and transport."""

    coil_sinkhorn: float = Field(0.464, gt=0.0, description="COIL: entropic regularisation of optimal transport (PyCIL)")
    coil_weight: float = Field(1e-3, ge=0.0, description="COIL: weight of both transport losses (PyCIL)")


@learner("coil")
class COIL(OldNetwork, Rehearsal):
    Settings = COILSettings
    title = "COIL"

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.to_new: Tensor | None = None  # (C_t, D) old classifiers transported to the new classes; per task
        self.to_old: Tensor | None = None  # (K_old, D) new classifiers transported to the old classes; per epoch

    def begin_task(self, task: int) -> None:
        if task > 0:
            old_means, new_means = self.class_means(task)
            self.to_new = transport(weights(self.net.heads), old_means, new_means, self.config.coil_sinkhorn)
        super().begin_task(task)
        if self.to_new is not None:
            with torch.no_grad():
                self.net.heads[task].weight.copy_(self.to_new)

    def class_means(self, task: int) -> tuple[Tensor, Tensor]:
        """Means of the old classes (K_old, D), from the memory, and of the new ones (C_t, D), under the current network."""
        first, last = self.stream.classes_before(task), self.stream.classes_upto(task)
        stored = self.extract_images(self.memory)
        new, labels = self.extract_images(self.data.task_indices("train", task))
        return exemplar_means(*stored, first), exemplar_means(new, labels - first, last - first)

    def training_batches(self, task: int, epoch: int) -> Iterable[tuple[Tensor, Tensor]]:
        if task > 0 and epoch > 0:  # before the first epoch its weight is 0
            old_means, new_means = self.class_means(task)
            self.to_old = transport(weights([self.net.heads[task]]), new_means, old_means, self.config.coil_sinkhorn)
        return super().training_batches(task, epoch)

    def training_module(self, task: int) -> nn.Module:
        return FeaturesAndLogits(self.net)

    def training_loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c = self.config
        features, logits = module(images)  # (N, D), (N, K)
        loss = self.classification_loss(logits, labels)
        if self.old_net is None:
            return loss, logits, labels
        old = self.old_logits(images)  # (N, K_old)
        known, temperature = old.shape[1], c.distill_temperature
        share = known / logits.shape[1]
        loss = share * distillation(logits[:, :known], old, temperature) + (1 - share) * loss
        prospective, retrospective = transport_weights(self.epoch, c.epochs)
        if prospective > 0:
            loss = loss + c.coil_weight * prospective * distillation(logits[:, known:], cosines(features, self.to_new), temperature)
        if retrospective > 0:
            loss = loss + c.coil_weight * retrospective * distillation(cosines(features, self.to_old), old, temperature)
        return loss, logits, labels


class FeaturesAndLogits(nn.Module):
    """Images -> features (N, D) and the logits of all classes (N, K)."""

    def __init__(self, net: IncrementalNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.net.features(images)
        return features, self.net.classify(features)


@torch.no_grad()
def transport(source: Tensor, source_means: Tensor, target_means: Tensor, regularisation: float) -> Tensor:
    """Classifiers of the target classes, made of the source classes' along an optimal transport plan (M, D).

    W' = T^T W / (mass of a target), T the entropic plan between uniform marginals for the cost |mu_i - mu_j|; rows of
    W count with length 1 and those of W' get the mean length of W's.

    Args:
        source: (K, D) W; source_means: (K, D); target_means: (M, D); regularisation: of Sinkhorn's entropy.
    """
    count, targets = len(source_means), len(target_means)
    cost = torch.cdist(source_means.double(), target_means.double()).cpu().numpy()  # (K, M)
    plan = ot.sinkhorn(np.full(count, 1 / count), np.full(targets, 1 / targets), cost, regularisation, method="sinkhorn_log")
    moved = torch.from_numpy(plan * targets).to(source).T @ F.normalize(source, dim=1)  # (M, D)
    length = source.norm(dim=1).mean() / moved.norm(dim=1).mean().clamp_min(torch.finfo(moved.dtype).tiny)
    return moved * length


def transport_weights(epoch: int, epochs: int) -> tuple[float, float]:
    """Weights of the prospective loss, which fades, and the retrospective one, which grows, in `epoch` of `epochs`."""
    return max(0.0, 1 - (epoch / FADE_EPOCHS) ** 2), (epoch / epochs) ** 2


def cosines(features: Tensor, classifier: Tensor) -> Tensor:
    """Cosine of each feature and each classifier row (N, K)."""
    return F.linear(F.normalize(features, dim=1), F.normalize(classifier, dim=1).to(features.dtype))


def weights(heads: Iterable[nn.Linear]) -> Tensor:
    """Rows of all heads (K, D), detached."""
    return torch.cat([head.weight.detach() for head in heads])
