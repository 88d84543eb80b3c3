"""What the features still know: a linear probe and the nearest class mean, which see all training images, as no learner may."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.analysis.states import Seen, State, flat

PROBE_STEPS = 300  # of L-BFGS at most


def linear_probe(state: State, seen: Seen, classes: int) -> float:
    """Percent right of a logistic regression on the features of the first `classes` classes, standardised."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, test = seen.train_labels < classes, seen.test_labels < classes
    if len(np.unique(seen.train_labels[train])) < 2:
        return 100.0
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=PROBE_STEPS))
    probe.fit(flat(state.train)[train], seen.train_labels[train])
    return percent(probe.predict(flat(state.test)[test]) == seen.test_labels[test])


def nearest_mean(state: State, seen: Seen) -> float:
    """Percent right by the largest cosine with a class's mean."""
    means = _class_means(state.train, seen.train_labels)
    cosines = F.normalize(state.test.flatten(1), dim=1) @ F.normalize(means, dim=1).T
    return percent(cosines.argmax(dim=1).numpy() == seen.test_labels)


def _class_means(features: Tensor, labels: np.ndarray) -> Tensor:
    """(K, D); nan for a class without images."""
    owner = torch.from_numpy(labels)
    return torch.stack([features.flatten(1)[owner == c].mean(dim=0) for c in range(int(labels.max()) + 1)])


def percent(right: np.ndarray) -> float:
    """Of N booleans; 0 where there is none."""
    return 100.0 * float(np.mean(right)) if right.size else 0.0
