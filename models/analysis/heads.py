"""Where the classifier leans: what it predicts, and mean logit, weight length and share of predictions of each task's head."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models.base import BaseLearner
from models.evaluation import SCORED_AT_ONCE
from utils.report.analysis import HeadBias


@torch.inference_mode()
def predictions(learner: BaseLearner, features: Tensor) -> np.ndarray:
    """(N,) class by its place in the order of learning."""
    parts = features.split(SCORED_AT_ONCE)
    return torch.cat([learner.scores(part.to(learner.fabric.device)).argmax(dim=1).cpu() for part in parts]).numpy()


@torch.inference_mode()
def head_biases(learner: BaseLearner, features: Tensor) -> dict[str, HeadBias]:
    """The leaning of the heads, before alignment too where they were aligned; nothing of a method without heads."""
    if not len(learner.net.heads) or features.flatten(1).shape[1] != learner.net.backbone.dim:
        return {}
    before, weights = learner.classifier_before_alignment(), getattr(learner, "heads_before", {})
    found = {}
    if before is not None:
        found["before"] = _bias(learner, before(features.to(learner.fabric.device)).cpu(),
                                [weights[f"{t}.weight"] for t in range(len(learner.net.heads))])
    found["after"] = _bias(learner, learner.net.classify(features.to(learner.fabric.device)).cpu(), [h.weight for h in learner.net.heads])
    return found


def _bias(learner: BaseLearner, logits: Tensor, weights: Sequence[Tensor]) -> HeadBias:
    """logits: (N, K); weights: (C_t, D) of each head."""
    per_head = logits.split(learner.net.head_sizes, dim=1)
    owner = torch.as_tensor(learner.stream.task_of_class)[logits.argmax(dim=1)]
    counts = torch.bincount(owner, minlength=len(per_head))
    return HeadBias(mean_logit=[part.mean().item() for part in per_head], weight_norm=[w.norm(dim=1).mean().item() for w in weights],
                    share=[100 * count / max(len(logits), 1) for count in counts.tolist()])
