"""What a continual learner is measured by: accuracies, forgetting, backward transfer.

Pure functions on numpy arrays. Every figure is a percentage in [0, 100], never rounded, and None where it is
not defined. The notation is the papers': after task t the accuracy matrix holds R[t, i], the accuracy on the
test images of task i <= t among all classes seen so far, without a task id; T is the last task.

Unlike the authors' release, no class is left out of the groups of ten and nothing is rounded before it is
averaged; `release_accuracy` keeps the release's arithmetic for the parity test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from utils.formulas.diagnosis import calibration_error, class_accuracies, task_confusion

AccuracyMatrix = Sequence[Sequence["float | None"]]  # row t, column i; None above the diagonal


@dataclass(frozen=True)
class Evaluation:
    """Accuracies after one task, in percent; None where there is no test image to measure on."""

    top1: float | None
    top5: float | None                      # top-K while fewer than five classes are seen
    task_accuracies: list[float | None]     # row t of the accuracy matrix: tasks 0..t
    task_il: float | None                   # task-incremental: the image's own task is known
    grouped: dict[str, float | None]        # {"00-09": ..., ..., "old": ..., "new": ...}
    old: float | None                       # classes of earlier tasks
    new: float | None                       # classes of this task
    class_accuracies: list[float | None] = field(default_factory=list)  # (K,) in the order of learning; domain-incremental (C,)
    confusion: list[list[int]] = field(default_factory=list)  # (t + 1, t + 1) images by own and predicted task; domains: none
    confusion_before: list[list[int]] = field(default_factory=list)  # the same before alignment, of methods that align
    calibration_error: float | None = None  # of the probabilities, where they were given
    uncalibrated_error: float | None = None  # the same without the temperature, where one was fitted
    base: float | None = None               # classes of the first task
    novel: float | None = None              # classes of all later tasks


def evaluate_predictions(
    topk_predictions: np.ndarray,
    labels: np.ndarray,
    task_predictions: np.ndarray,
    task_of_class: np.ndarray,
    *,
    task: int,
    known_classes: int,
    period: int | None = None,
    confidences: np.ndarray | None = None,
    uncalibrated: np.ndarray | None = None,
    earlier_predictions: np.ndarray | None = None,
) -> Evaluation:
    """All accuracies after task `task`, from what the network predicted for the test images seen so far.

    Args:
        topk_predictions: (N, k) int, k <= 5, best first, among all classes seen so far.
        labels: (N,) int, the re-mapped label of each image.
        task_predictions: (N,) int, the prediction when the logits are masked to the image's own task.
        task_of_class: (K,) int, the task of each re-mapped class.
        task: index t of the task just learned, from 0.
        known_classes: classes learned before this task; smaller labels are "old".
        period: domain-incremental only: the number C of classes, the same in every domain. Head d * C + c
            is class c of domain d, so a prediction is right when it equals the label modulo C.
        confidences: (N,) the largest probability, in [0, 1]; uncalibrated: without the temperature.
        earlier_predictions: (N,) int, of the classifier before alignment.
    """
    topk_predictions, task_predictions = np.asarray(topk_predictions), np.asarray(task_predictions)
    labels = np.asarray(labels)
    task_of_class = np.asarray(task_of_class)
    task_of_image = task_of_class[labels]                                           # (N,)
    is_old, is_base = labels < known_classes, task_of_image == 0                    # (N,)
    if period is not None:
        topk_predictions, task_predictions, labels = (a % period for a in (topk_predictions, task_predictions, labels))
    predictions = topk_predictions[:, 0]                                            # (N,)
    correct = predictions == labels                                                 # (N,)
    old, new = _percent(correct[is_old]), _percent(correct[~is_old])

    def calibration(confidences: np.ndarray | None) -> float | None:
        return None if confidences is None else calibration_error(np.asarray(confidences, dtype=np.float64), correct)

    def confusion(guesses: np.ndarray | None) -> list[list[int]]:
        return [] if guesses is None or period is not None else task_confusion(guesses, labels, task_of_class, task + 1)

    return Evaluation(
        top1=_percent(correct),
        top5=topk_accuracy(topk_predictions, labels),
        task_accuracies=task_accuracies(correct, task_of_image, num_tasks=task + 1),
        task_il=_percent(task_predictions == labels),
        grouped={**grouped_accuracy(predictions, labels, known_classes), "old": old, "new": new},
        old=old,
        new=new,
        class_accuracies=class_accuracies(predictions, labels, period or int(np.count_nonzero(task_of_class <= task))),
        confusion=confusion(predictions),
        confusion_before=confusion(earlier_predictions),
        calibration_error=calibration(confidences),
        uncalibrated_error=calibration(uncalibrated),
        base=_percent(correct[is_base]),
        novel=_percent(correct[~is_base]),
    )


def without_old_images(evaluation: Evaluation) -> Evaluation:
    """The same where test images of some older task are gone: what is measured over all classes is not defined any more."""
    grouped = {key: value if key == "new" else None for key, value in evaluation.grouped.items()}
    return replace(evaluation, top1=None, top5=None, task_il=None, grouped=grouped, old=None, base=None, novel=None)


def _percent(correct: np.ndarray) -> float | None:
    """Share of True in `correct` (N,), in percent; None for no image."""
    return 100.0 * float(np.count_nonzero(correct)) / correct.size if correct.size else None


def topk_accuracy(topk_predictions: np.ndarray, labels: np.ndarray) -> float | None:
    """Percent of images whose label is among their k predictions; topk_predictions (N, k), labels (N,)."""
    return _percent((np.asarray(topk_predictions) == np.asarray(labels)[:, None]).any(axis=1))


def task_accuracies(correct: np.ndarray, task_of_image: np.ndarray, num_tasks: int) -> list[float | None]:
    """Accuracy on each task's images, one row R[t, 0..t] of the matrix; None for a task without test images.

    Args:
        correct: (N,) bool, whether each image was classified right among all classes seen.
        task_of_image: (N,) int, `task_of_class[labels]`.
        num_tasks: t + 1, tasks learned so far.
    """
    counts = np.bincount(task_of_image, minlength=num_tasks)
    right = np.bincount(task_of_image[correct], minlength=num_tasks)
    return [100.0 * int(r) / int(n) if n else None for r, n in zip(right[:num_tasks], counts[:num_tasks], strict=True)]


def grouped_accuracy(
    predictions: np.ndarray, labels: np.ndarray, known_classes: int, group: int = 10
) -> dict[str, float | None]:
    """Accuracy per group of `group` consecutive classes, and on "old" (label < known_classes) and "new" classes.

    Every class is in exactly one group, named by its first and last possible class ("00-09", "10-19", ...), so
    that a group keeps its name from task to task. The release drops the last group when its only class seen is
    its first one. predictions and labels are (N,) int; a group without images is None.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    correct, group_of_image = predictions == labels, labels // group
    num_groups = int(group_of_image.max()) + 1 if labels.size else 0
    by_group = task_accuracies(correct, group_of_image, num_groups)
    accuracies = {f"{g * group:02d}-{(g + 1) * group - 1:02d}": accuracy for g, accuracy in enumerate(by_group)}
    is_old = labels < known_classes
    return {**accuracies, "old": _percent(correct[is_old]), "new": _percent(correct[~is_old])}


def average_incremental(curve: Sequence[float | None]) -> float | None:
    """mean(a_0 .. a_T) of the top-1 accuracies after each task that has one; None where none has."""
    defined = [accuracy for accuracy in curve if accuracy is not None]
    return float(np.mean(defined)) if defined else None


def harmonic_accuracy(base: float | None, novel: float | None) -> float | None:
    """2 a b / (a + b) of the accuracies on the first task's classes and on all later ones; 0 where one is 0, None where one is.

    High only where both are, however many more test images one of them has. Source: few-shot class-incremental learning, e.g.
    wire-wqz/ConCM, models/ConCM/fscil_trainer.py at 293e374, which gives it after each session and its mean over them.
    """
    if base is None or novel is None:
        return None
    return 2 * base * novel / (base + novel) if base + novel else 0.0


def accuracy_at_any_time(points: Sequence[float]) -> float | None:
    """A_AUC: the area under accuracy over the training images seen, its mean over measurements at equal distances; None without any.

    Source: i-Blurry (Koh et al., ICLR 2022); as the mean in KHU-AGI/Si-Blurry, methods/_trainer.py at 2bb41d5.
    """
    return float(np.mean(points)) if len(points) else None


def percent_text(accuracy: float | None) -> str:
    """An accuracy for log lines, "-" where there is none."""
    return "-" if accuracy is None else f"{accuracy:.2f}"


def forgetting(matrix: AccuracyMatrix) -> float | None:
    """mean over i < T of (max over i <= t < T of R[t, i]) - R[T, i]; None for one task.

    A task without test images is left out. Negative when later tasks improved the earlier ones.
    """
    return forgetting_curve(matrix)[-1] if len(matrix) else None


def forgetting_curve(matrix: AccuracyMatrix) -> list[float | None]:
    """`forgetting` after each task, (T + 1,): of the first t + 1 rows and columns."""
    table = _table(matrix)                                                          # (T + 1, T + 1)
    best = np.fmax.accumulate(table, axis=0)                    # nan above the diagonal, so t >= i
    return [_mean_where_defined(best[t - 1, :t] - table[t, :t]) if t else None for t in range(len(table))]


def backward_transfer(matrix: AccuracyMatrix) -> float | None:
    """mean over i < T of R[T, i] - R[i, i]; None for one task. A task without test images is left out."""
    return backward_transfer_curve(matrix)[-1] if len(matrix) else None


def backward_transfer_curve(matrix: AccuracyMatrix) -> list[float | None]:
    """`backward_transfer` after each task, (T + 1,)."""
    table = _table(matrix)
    first = np.diag(table)
    return [_mean_where_defined((table[t] - first)[:t]) for t in range(len(table))]


def _table(matrix: AccuracyMatrix) -> np.ndarray:
    """The matrix as (T + 1, T + 1) float64 with nan for None."""
    table = np.array(matrix, dtype=np.float64)
    assert not table.size or table.shape == (len(table), len(table)), f"the matrix must be square, got {table.shape}"
    return table


def _mean_where_defined(values: np.ndarray) -> float | None:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else None


def release_accuracy(
    predictions: np.ndarray, labels: np.ndarray, known_classes: int, group: int = 10
) -> dict[str, float]:
    """What the authors' release logs, its rounding and gaps included; only the parity test calls this.

    Differs from `grouped_accuracy`: every value has two decimals; the groups run up to but not including the
    largest label, so that label has no group when it is a multiple of ten; an empty group, and "new" without
    images, is nan; "old" without images is 0.
    """
    correct = np.asarray(predictions) == np.asarray(labels)
    labels = np.asarray(labels)

    def rounded(chosen: np.ndarray) -> float:
        return float(np.around(100 * correct[chosen].sum() / chosen.sum(), 2)) if chosen.any() else float("nan")

    accuracies = {"total": rounded(np.ones_like(correct))}
    for first in range(0, int(labels.max()), group):
        accuracies[f"{first:02d}-{first + group - 1:02d}"] = rounded((labels >= first) & (labels < first + group))
    is_old = labels < known_classes
    accuracies["old"] = rounded(is_old) if is_old.any() else 0.0
    accuracies["new"] = rounded(~is_old)
    return accuracies
