"""EASE: an adapter per task, class prototypes under each, old ones synthesised (Zhou et al., CVPR 2024, arXiv 2403.12030).

    training     a fresh adapter and a cosine head of the task's own classes, cross-entropy
    prototypes   P_cj, mean feature of class c of task i under adapter j; measured for j <= i, for j > i
                 P_cj = sum_k softmax_k(cos(P_ci, P_ki)) P_kj over the classes k of the tasks >= j
    scores       cos(z_i, P_ci) + (a / t) sum over j != i of cos(z_j, P_cj),  t the current task from 0, a = `ease_others`

The formulas are in utils/formulas/prototypes.py. t + 1 passes per image.

Differs from the authors' code: the heads play no part in a prediction, but stay with their tasks in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from convs.heads import HeadFactory, cosine_head
from models.adapters.per_task import AdapterPerTask, AdapterSettings
from models.base import FLOAT_BYTES
from models.frozen.ncm import class_means, never_without_images
from models.registry import learner
from utils.formulas.prototypes import prototype_scores, synthesise_prototypes
from utils.run.monitor import Monitor


class EASESettings(AdapterSettings):
    """The prediction."""

    ease_others: float = Field(0.1, ge=0.0,
        description="ease: weight a of the adapters of other tasks than the class's own (release: 0.1, CUB-200 0.05)")


@learner("ease")
class EASE(AdapterPerTask):
    Settings = EASESettings
    title = "EASE"

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        # (K, T, D) of each class under each adapter, grows along both with every task; NaN for a class without images
        self.prototypes = torch.empty(0, 0, self.net.backbone.dim, device=self.fabric.device)

    def head_factory(self) -> HeadFactory:
        return partial(cosine_head, learned=True)

    def end_task(self, task: int, monitor: Monitor) -> None:
        with monitor.stage("statistics"):
            features, labels = self.training_features(task, self.prediction_passes())
            means = [class_means(under_adapter, labels, self.stream.classes_of(task)) for under_adapter in features]
            old = F.pad(self.prototypes, (0, 0, 0, 1))  # (K_old, t + 1, D)
            self.prototypes = torch.cat([old, torch.stack(means, dim=1)])
            self.synthesise()

    def synthesise(self) -> None:
        """Old classes' prototypes under newer adapters, all anew, from the classes that have images."""
        seen = ~self.prototypes.isnan().any(dim=2).any(dim=1)
        self.prototypes[seen] = synthesise_prototypes(self.prototypes[seen], self.tasks_of_classes()[seen])

    def scores(self, features: Tensor) -> Tensor:
        """Weighted cosines (N, K)."""
        found = prototype_scores(self.split_passes(features), self.prototypes, self.tasks_of_classes(), self.config.ease_others)
        return never_without_images(found)

    # State ---------------------------------------------------------------------------------------------------

    def extra_state(self) -> dict[str, Tensor]:
        return {"prototypes": self.prototypes}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        self.prototypes = state["prototypes"]

    def planned_statistics(self, classes: int, images_per_class: int | None) -> int:
        return classes * self.stream.num_tasks * self.net.backbone.dim * FLOAT_BYTES

    def memory_bytes(self) -> dict[str, int]:
        return {**super().memory_bytes(), "statistics": self.prototypes.nbytes}
