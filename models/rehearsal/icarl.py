"""iCaRL: incremental classifier and representation learning (Rebuffi et al., CVPR 2017, arXiv 1611.07725).

Added to rehearsal: one sigmoid per class, trained to the label for new classes and to the old network's output for old
ones (its Eq. in algorithm 3), and classification by the nearest mean of exemplars (NME, algorithm 1).

Differs from the paper: a pre-trained ViT; the binary cross-entropy is summed over classes and averaged over the batch, and
the backbone may have its own learning rate. The authors' code also averages over mirrored exemplars.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.all_heads import OldNetwork
from models.registry import learner
from models.rehearsal.memory import Rehearsal, exemplar_means


@learner("icarl")
class ICaRL(OldNetwork, Rehearsal):
    title = "iCaRL"
    scores_are_logits = False  # but distances

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.class_means = torch.empty(0, self.net.backbone.dim, device=self.fabric.device)  # (K, D) of length 1

    def training_loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = module(images)  # (N, K)
        old = self.old_logits(images) if self.old_net is not None else None
        return icarl_loss(logits, labels, old), logits, labels

    def update_memory(self, task: int) -> None:
        super().update_memory(task)
        features, labels = self.extract_images(self.memory)
        self.class_means = exemplar_means(features, labels, self.stream.classes_upto(task))

    def scores(self, features: Tensor) -> Tensor:
        """Minus the distance to each class's mean exemplar (N, K), both of length 1."""
        distances = torch.cdist(F.normalize(features, dim=1), self.class_means, compute_mode="use_mm_for_euclid_dist")
        return -distances.masked_fill(~self.class_means.any(dim=1), torch.inf)  # a class without images never wins

    def forget_statistics(self, labels: Collection[int]) -> None:
        super().forget_statistics(labels)
        self.class_means = self.class_means[[label for label in range(len(self.class_means)) if label not in labels]]

    def extra_state(self) -> dict[str, Tensor]:
        return {**super().extra_state(), "class_means": self.class_means}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_extra_state(state)
        self.class_means = state["class_means"]

    def memory_bytes(self) -> dict[str, int]:
        return {**super().memory_bytes(), "statistics": self.class_means.nbytes}


def icarl_loss(logits: Tensor, labels: Tensor, old_logits: Tensor | None) -> Tensor:
    """- sum_y [q_y log g_y + (1 - q_y) log(1 - g_y)], mean over the batch; g = sigmoid(logits).

    q_y is the label's indicator for new classes and the old network's sigmoid for old ones.

    Args:
        logits: (N, K); labels: (N,); old_logits: (N, K_old), or None in the first task.
    """
    targets = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    if old_logits is not None:
        targets[:, : old_logits.shape[1]] = old_logits.sigmoid().to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(labels)
