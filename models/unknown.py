"""Images of no known class: two scores, larger is less known, and how well they tell such images after each task of a run.

    distance    relative Mahalanobis distance from the stored Gaussians (models/slca/unknown.py)
    energy      - log sum_k exp(s_k) of the logits s (Liu et al., NeurIPS 2020, arXiv 2010.03759, with T = 1); a class read from
                Gaussians has its log density as logit, so that the energy is minus the log density of the features

No further data are needed: after each task the test images of the classes still to come are the unknown ones.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from models import evaluation
from models.base import BaseLearner
from utils.formulas.unknown import FIGURES, auroc, fpr95

SCORES = ("distance", "energy")
LEAST_IMAGES = 256  # unknown images that are looked at, where there are as many
SHARE_OF_TRAINING = 20  # and one for so many images that the task's training went through: under 2 % of its time


@torch.inference_mode()
def unknown_figures(learner: BaseLearner, task: int) -> dict[str, float | None]:
    """AUROC and FPR95 in percent of the images of classes still to come against those of the classes seen, by both scores.

    All are None after the last task and in the domain scenario, where no class is new; those of a score that the method has not, too.
    """
    figures: dict[str, float | None] = dict.fromkeys(FIGURES)
    if learner.stream.label_period is not None or task + 1 == learner.stream.num_tasks:
        return figures
    scores = scores_of(learner)
    if not scores:
        return figures
    known = evaluation.extract_tasks(learner, "test", range(task + 1))[0]  # there since the accuracies were measured
    unknown = features_to_come(learner, task)
    if len(known) and len(unknown):
        for name, score in scores.items():
            of_known, of_unknown = _in_parts(score, known), _in_parts(score, unknown)
            figures |= {f"auroc_{name}": auroc(of_known, of_unknown), f"fpr95_{name}": fpr95(of_known, of_unknown)}
    return figures


def features_to_come(learner: BaseLearner, task: int) -> Tensor:
    """Features (M, D) of test images of the classes after `task`.

    Of all of them while the backbone rests, which are then extracted once in a run; else of as many as cost little beside training.
    """
    data, coming = learner.data, range(task + 1, learner.stream.num_tasks)
    if not learner.backbone_trains:  # one task after another, as each would be when it is learned
        return torch.cat([learner.extract("test", later)[0] for later in coming])
    indices = data.task_indices("test", coming)
    most = max(LEAST_IMAGES, learner.images_per_epoch(task) * learner.config.epochs // SHARE_OF_TRAINING)
    spread = np.linspace(0, len(indices) - 1, min(len(indices), most)).astype(np.int64)
    return evaluation.extract_pass(learner, "test", indices=indices[spread])[0]


def scores_of(learner: BaseLearner) -> dict[str, Callable[[Tensor], Tensor]]:
    """The scores that the learner has, by name: features (N, D) -> (N,)."""
    found: dict[str, Callable[[Tensor], Tensor]] = {}
    region = learner.known_region()
    if region is not None:
        found["distance"] = region.distances
    if learner.has_heads and learner.scores_are_logits:
        found["energy"] = lambda features: energy(learner.scores(features))
    return found


def energy(logits: Tensor) -> Tensor:
    """Energy of logits (N, K), (N,) float64."""
    return -logits.double().logsumexp(dim=1)


class EnergyRegion:
    """Where the images of the classes seen so far lie, by energy.

    Args:
        logits: features (N, D) -> (N, K).
        drawn: features (M, D) as known images have them, for a seed.
    """

    def __init__(self, logits: Callable[[Tensor], Tensor], drawn: Callable[[int], Tensor]) -> None:
        self.logits, self.drawn = logits, drawn

    def distances(self, features: Tensor) -> Tensor:
        """Energy of features (N, D), (N,) float64 on the CPU; larger is less known."""
        return torch.cat([energy(self.logits(part)) for part in features.split(evaluation.SCORED_AT_ONCE)]).cpu()

    def threshold(self, share: float, torch_seed: int = 1) -> float:
        """The energy that `share` of the drawn features stay within; the same for the same seed."""
        return self.distances(self.drawn(torch_seed)).quantile(share).item()


def _in_parts(score: Callable[[Tensor], Tensor], features: Tensor) -> np.ndarray:
    """The score of features (N, D), (N,) float64, without a table of all classes' scores of all images."""
    return torch.cat([score(part) for part in features.split(evaluation.SCORED_AT_ONCE)]).cpu().numpy()
