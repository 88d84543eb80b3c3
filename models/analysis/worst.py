"""The classes that are lost: what their images were taken for, some of these images, and the Gaussians that lie nearest."""

from __future__ import annotations

from itertools import chain, zip_longest

import numpy as np

from models.analysis.knowledge import percent
from models.analysis.staleness import Remembered
from models.analysis.states import Seen
from models.base import BaseLearner
from utils.images.thumbnail import thumbnail
from utils.report.analysis import Example, WorstClass

WORST, TAKERS, NEAREST = 10, 3, 3  # classes shown, and of each the classes that take its images and the Gaussians that are nearest
EXAMPLES = 4  # images of each


def worst_classes(learner: BaseLearner, seen: Seen, guesses: np.ndarray, labels: np.ndarray, remembered: Remembered) -> list[WorstClass]:
    """The classes with the lowest accuracy after the last task.

    Args:
        guesses, labels: (n,) of the test images of the classes known.
    """
    accuracies = {int(c): percent(guesses[labels == c] == c) for c in np.unique(labels)}
    return [_described(learner, seen, c, guesses, labels, remembered) for c in sorted(accuracies, key=accuracies.__getitem__)[:WORST]]


def _described(learner: BaseLearner, seen: Seen, label: int, guesses: np.ndarray, labels: np.ndarray, remembered: Remembered) -> WorstClass:
    names = [str(name) for name in learner.stream.class_names]
    own = guesses[labels == label]
    taken = np.bincount(own, minlength=len(names)) * 100.0 / len(own)
    takers = [int(k) for k in np.argsort(-taken, kind="stable") if k != label and taken[k] > 0][:TAKERS]
    images = seen.test_indices[np.flatnonzero(seen.test_labels == label)]  # in the order of `own`
    by_taker = [images[own == taker].tolist() for taker in takers]
    mixed = [index for index in chain.from_iterable(zip_longest(*by_taker)) if index is not None][:EXAMPLES]  # one of each in turn
    guess_of = dict(zip(images.tolist(), own.tolist(), strict=True))
    return WorstClass(
        name=names[label], accuracy=float(taken[label]), taken_for=[(names[k], float(taken[k])) for k in takers],
        examples=[Example(thumbnail(learner.data.pixels("test", np.array([index]))[0]), names[guess_of[index]]) for index in mixed],
        nearest=[(names[c], distance) for c, distance in remembered.nearest(label, NEAREST)])
