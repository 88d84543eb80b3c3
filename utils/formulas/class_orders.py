"""Orders of classes from how alike they are: similar classes in one task, or as unlike ones as there are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform


def cosines(means: np.ndarray) -> np.ndarray:
    """Class means (K, D) -> their cosines (K, K); 0 for a mean of length 0."""
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    unit = means / np.where(lengths > 0, lengths, 1.0)
    return unit @ unit.T


def similar_order(similarity: np.ndarray) -> np.ndarray:
    """(K,) classes so that neighbours are alike: the leaves of average linkage, in the order with the least sum of neighbours' distances
    (Bar-Joseph et al., Bioinformatics 2001).

    Args:
        similarity: (K, K) symmetric, at most 1, e.g. cosines.
    """
    if len(similarity) < 3:  # nothing to choose
        return np.arange(len(similarity))
    distances = np.clip(1.0 - (similarity + similarity.T) / 2, 0.0, None)
    np.fill_diagonal(distances, 0.0)
    return leaves_list(linkage(squareform(distances, checks=False), method="average", optimal_ordering=True)).astype(np.int64)


def spread_order(order: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """(K,) the classes of `order` dealt out to tasks of `sizes` classes, so that each task takes evenly spaced ones of it."""
    places = sorted(((position + 0.5) / size, task) for task, size in enumerate(sizes) for position in range(size))
    task_of_place = np.array([task for _, task in places], dtype=np.int64)  # (K,)
    return order[np.argsort(task_of_place, kind="stable")]


def within_tasks(similarity: np.ndarray, order: np.ndarray, sizes: Sequence[int]) -> float | None:
    """Mean similarity of two classes of one task, over all such pairs; None where no task has two classes."""
    task = np.repeat(np.arange(len(sizes)), sizes)  # (K,) of each place in the order
    pairs = np.triu(task[:, None] == task[None], k=1)
    return float(similarity[np.ix_(order, order)][pairs].mean()) if pairs.any() else None
