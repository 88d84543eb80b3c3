"""Accuracy inside a task, at equal distances in training images: what A_AUC of a blurry stream is the mean of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.base import BaseLearner
from models.evaluation import SCORED_AT_ONCE, extract_pass


class AnytimeAccuracy:
    """Called after each step of stage 1 with the batch's labels; measures every `measure_every` images of the stream.

    Measured is the accuracy on the test images of the classes whose first image has come, among these classes. Images that a
    method does not train on step by step (a memory's, or known classes' that it takes in when the task ends) move no mark: the
    task's images count as spread evenly over its steps.

    Args:
        points: where the measurements go, in order.
    """

    def __init__(self, learner: BaseLearner, task: int, points: list[dict[str, Any]]) -> None:
        self.learner, self.task, self.points = learner, task, points
        data = learner.data
        self.before = sum(data.count(split, range(task)) for split in ("train", "again"))  # images of earlier tasks
        self.images = data.count("train", task) + data.count("again", task)
        self.steps = -(-learner.images_per_epoch(task) // learner.config.batch_size) * learner.config.epochs
        self.done = 0
        self.seen = torch.zeros(learner.stream.classes_upto(task), device=learner.fabric.device)  # (K,) above 0 once a class has come
        self.seen[: learner.stream.classes_before(task)] = 1

    def __call__(self, labels: Tensor) -> None:
        if not self.learner.classifies_while_training:
            return
        every = self.learner.config.blurry.measure_every
        reached = self._images_seen()
        self.done += 1
        self.seen[labels] = 1
        if self._images_seen() // every > reached // every:
            accuracy = self.measure()
            if accuracy is not None:
                self.points.append({"task": self.task + 1, "images": self._images_seen(), "accuracy": accuracy})

    def _images_seen(self) -> int:
        return self.before + self.images * self.done // max(self.steps, 1)

    @torch.no_grad()
    def measure(self) -> float | None:
        """Percent right on the test images of the classes that have come; None where they have none."""
        learner = self.learner
        come = learner.fabric.all_reduce(self.seen.clone(), reduce_op="sum") > 0  # (K,) to any of the processes
        indices = learner.data.task_indices("test", range(self.task + 1))
        indices = indices[come.cpu().numpy()[learner.data.labels_of("test", indices)]]
        if not len(indices):
            return None
        features, labels = extract_pass(learner, "test", indices=indices)
        correct = 0
        for part, targets in zip(features.split(SCORED_AT_ONCE), labels.split(SCORED_AT_ONCE), strict=True):
            scores = learner.scores(part)  # (n, K)
            correct += int((scores.masked_fill(~come, -torch.inf).argmax(dim=1) == targets).sum())
        return 100 * correct / len(labels)
