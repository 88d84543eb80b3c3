"""NCM, "SimpleCIL": nearest class mean by cosine on a frozen backbone (Zhou et al., IJCV 2024, arXiv 2303.07338).

One mean per class from one pass over its images; nothing is trained. Classic NCM: Mensink et al., TPAMI 2013.

Differs from the paper: scores are plain cosines, without the temperature that changes no decision. With `first_session`
the features are those of a backbone adapted in the first task; beside the pre-trained ones they make APER.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from models.base import FLOAT_BYTES
from models.by_class import positions_by_class, require_finite
from models.first_session import FirstSession
from models.registry import learner
from utils.run.monitor import Monitor


@learner("ncm")
class NCM(FirstSession):
    title = "SimpleCIL (NCM)"

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.class_means = torch.empty(0, self.feature_dim, device=self.fabric.device)  # (K, D), grows by C_t per task

    def end_task(self, task: int, monitor: Monitor) -> None:
        with monitor.stage("statistics"):
            features, labels = self.extract("train", task)
            self.add_statistics(features, labels, self.stream.classes_of(task))

    def add_statistics(self, features: Tensor, labels: Tensor, classes: range) -> None:
        """Take in the features (N, D) and labels (N,) of the task's `classes`."""
        require_finite(features, labels)
        self.class_means = torch.cat([self.class_means, class_means(features, labels, classes)])

    def scores(self, features: Tensor) -> Tensor:
        """Cosine of each feature with each class mean (N, K)."""
        return never_without_images(F.normalize(features) @ F.normalize(self.class_means).T)

    def join_statistics(self, other: NCM) -> None:
        self.class_means = torch.cat([self.class_means, other.class_means])

    def forget_statistics(self, labels: Collection[int]) -> None:
        self.class_means = self.class_means[self.kept(labels)]

    def kept(self, labels: Collection[int]) -> list[int]:
        """Classes seen but these."""
        return [label for label in range(len(self.class_means)) if label not in labels]

    # State ---------------------------------------------------------------------------------------------------

    def extra_state(self) -> dict[str, Tensor]:
        return {"class_means": self.class_means}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        self.class_means = state["class_means"]

    def planned_statistics(self, classes: int, images_per_class: int | None) -> int:
        return classes * self.feature_dim * FLOAT_BYTES

    def memory_bytes(self) -> dict[str, int]:
        """All that the classifier is made of counts as statistics."""
        return {**super().memory_bytes(), "statistics": sum(tensor.nbytes for tensor in self.extra_state().values())}


def class_means(features: Tensor, labels: Tensor, classes: range) -> Tensor:
    """(C, D): mean feature of each of `classes`; NaN for a class without images."""
    return torch.stack([features[found].mean(dim=0) for found in positions_by_class(labels, classes)])


def never_without_images(scores: Tensor) -> Tensor:
    """A class without images has the mean, and so the scores, NaN: it shall never win."""
    return scores.masked_fill(scores.isnan(), -torch.inf)
