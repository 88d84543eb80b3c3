"""What an accuracy hides: which classes are lost, whose classes take their images, and whether probabilities can be believed.

Pure functions on numpy arrays; percentages in [0, 100], None or an empty list where nothing is defined.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CALIBRATION_BINS = 15  # equal widths of confidence (Guo et al. 2017)


def class_accuracies(predictions: np.ndarray, labels: np.ndarray, classes: int) -> list[float | None]:
    """Percent right of each class's images, (K,); None for a class without test images. predictions, labels: (N,) int."""
    counts = np.bincount(labels, minlength=classes)
    right = np.bincount(labels[predictions == labels], minlength=classes)
    return [100.0 * int(r) / int(n) if n else None for r, n in zip(right[:classes], counts[:classes], strict=True)]


def task_confusion(predictions: np.ndarray, labels: np.ndarray, task_of_class: np.ndarray, tasks: int) -> list[list[int]]:
    """Images by the task they are of (rows) and the task of the class they are taken for (columns), (T, T).

    Args:
        predictions, labels: (N,) int, among all classes seen so far; task_of_class: (K,) int; tasks: T, learned so far.
    """
    cells = task_of_class[labels] * tasks + task_of_class[predictions]
    return np.bincount(cells, minlength=tasks * tasks).reshape(tasks, tasks).tolist()


def shares(confusion: Sequence[Sequence[int]]) -> list[list[float | None]]:
    """A confusion's rows in percent of their images; None in the row of a task without test images."""
    return [[100.0 * cell / total if total else None for cell in row] for row in confusion for total in [sum(row)]]


def taken_between_old_and_new(confusion: Sequence[Sequence[int]]) -> tuple[float | None, float | None]:
    """Percent of the old tasks' images taken for classes of the newest task, and of the newest task's for old classes."""
    if len(confusion) < 2:
        return None, None
    table = np.asarray(confusion)
    old, new = table[:-1], table[-1]
    return (100.0 * int(old[:, -1].sum()) / int(old.sum()) if old.any() else None,
            100.0 * int(new[:-1].sum()) / int(new.sum()) if new.any() else None)


def calibration_error(confidences: np.ndarray, correct: np.ndarray, bins: int = CALIBRATION_BINS) -> float | None:
    """Expected calibration error: mean over the images of |share right - mean confidence| of their bin, in percent.

    Args:
        confidences: (N,) the largest probability, in [0, 1]; correct: (N,) bool; bins: of equal width.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, Eq. 3.
    """
    if not confidences.size:
        return None
    of_bin = np.clip(np.ceil(confidences * bins).astype(np.int64) - 1, 0, bins - 1)  # bin m is ((m - 1) / M, m / M]
    gap = np.bincount(of_bin, correct, minlength=bins) - np.bincount(of_bin, confidences, minlength=bins)
    return 100.0 * float(np.abs(gap).sum()) / confidences.size
