"""What one seed has measured so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from utils.formulas import metrics
from utils.formulas.diagnosis import taken_between_old_and_new
from utils.formulas.unknown import FIGURES

T = TypeVar("T")


@dataclass
class Figures:
    """What one seed has measured so far; saved with every checkpoint."""

    top1_curve: list[float] = field(default_factory=list)
    top5_curve: list[float] = field(default_factory=list)
    task_il_curve: list[float] = field(default_factory=list)
    accuracy_rows: list[list[float | None]] = field(default_factory=list)  # row t: R[t][0..t]
    grouped: list[dict[str, float | None]] = field(default_factory=list)
    validation_curve: list[float | None] = field(default_factory=list)  # with val_fraction
    all_domains_curve: list[float | None] = field(default_factory=list)  # domain-incremental
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_mb: float = 0.0
    memory_curve: list[dict[str, int]] = field(default_factory=list)
    diagnostics: list[dict[str, float]] = field(default_factory=list)  # what the method measured of itself, after each task
    class_accuracies: list[list[float | None]] = field(default_factory=list)  # row t: classes seen, in the order of learning
    confusion: dict[str, list[list[int]]] = field(default_factory=dict)  # of the last task alone: "after" and "before" alignment
    old_as_new_curve: list[float | None] = field(default_factory=list)  # percent of old images taken for new classes
    new_as_old_curve: list[float | None] = field(default_factory=list)  # and of new images for old ones
    calibration_curve: list[float | None] = field(default_factory=list)  # expected calibration error
    uncalibrated_curve: list[float | None] = field(default_factory=list)  # the same without the temperature, where one was fitted
    unknown_curve: list[dict[str, float | None]] = field(default_factory=list)  # how well classes still to come were told (FIGURES)
    harmonic_curve: list[float | None] = field(default_factory=list)  # few-shot streams
    anytime: list[dict[str, Any]] = field(default_factory=list)  # blurry streams: "task" from 1, "images" seen, "accuracy" then
    seconds_curve: list[dict[str, float]] = field(default_factory=list)  # `seconds` after each task
    images_curve: list[int] = field(default_factory=list)  # images that training has gone through after each task
    timeline: list[dict[str, Any]] = field(default_factory=list)  # every stage of every task, with begin and end in seconds
    trained_images: int = 0

    def add(self, evaluation: metrics.Evaluation, validation: float | None, all_domains: float | None,
            harmonic: float | None = None, unknown: dict[str, float | None] | None = None) -> None:
        self.top1_curve.append(evaluation.top1)
        self.top5_curve.append(evaluation.top5)
        self.task_il_curve.append(evaluation.task_il)
        self.accuracy_rows.append(evaluation.task_accuracies)
        self.grouped.append(evaluation.grouped)
        self.validation_curve.append(validation)
        self.all_domains_curve.append(all_domains)
        self.class_accuracies.append(evaluation.class_accuracies)
        after, before = evaluation.confusion, evaluation.confusion_before
        self.confusion = {name: table for name, table in (("after", after), ("before", before)) if table}
        old_as_new, new_as_old = taken_between_old_and_new(after)
        self.old_as_new_curve.append(old_as_new)
        self.new_as_old_curve.append(new_as_old)
        self.calibration_curve.append(evaluation.calibration_error)
        self.uncalibrated_curve.append(evaluation.uncalibrated_error)
        self.unknown_curve.append(dict.fromkeys(FIGURES) if unknown is None else unknown)
        self.harmonic_curve.append(harmonic)

    def add_times(self, seconds: dict[str, float], trained_images: int, spans: Sequence[dict[str, Any]]) -> None:
        """What the task that was just evaluated cost; `seconds` and `trained_images` count from the seed's beginning."""
        self.seconds, self.trained_images = dict(seconds), trained_images
        self.seconds_curve.append(dict(seconds))
        self.images_curve.append(trained_images)
        self.timeline += [{"task": len(self.accuracy_rows), **span} for span in spans]

    @property
    def task_seconds(self) -> list[dict[str, float]]:
        """Seconds of each task by stage."""
        return [{stage: total - before.get(stage, 0.0) for stage, total in after.items()}
                for before, after in zip([{}, *self.seconds_curve], self.seconds_curve, strict=False)]

    @property
    def task_images(self) -> list[int]:
        """Images that each task's training went through, over its epochs."""
        return [after - before for before, after in zip([0, *self.images_curve], self.images_curve, strict=False)]

    def whole(self, curve: list[T]) -> list[T]:
        """`curve` if it has every task; a run that an older version of the program began lacks the first ones."""
        return curve if len(curve) == len(self.accuracy_rows) else []

    def skip_to(self, task: int) -> None:
        """Nothing was measured after the tasks from here to `task` (another run learned them)."""
        for done in range(len(self.accuracy_rows), task + 1):
            self.add(metrics.Evaluation(None, None, [None] * (done + 1), None, {"old": None, "new": None}, None, None), None, None)
            self.memory_curve.append(dict(self.memory_curve[-1]) if self.memory_curve else {})
            self.diagnostics.append({})

    def drop_after(self, task: int) -> None:
        """Forget task `task` and everything later."""
        for curve in (self.top1_curve, self.top5_curve, self.task_il_curve, self.accuracy_rows, self.grouped, self.validation_curve,
                      self.all_domains_curve, self.memory_curve, self.diagnostics, self.class_accuracies, self.old_as_new_curve,
                      self.new_as_old_curve, self.calibration_curve, self.uncalibrated_curve, self.unknown_curve,
                      self.harmonic_curve, self.seconds_curve, self.images_curve):
            del curve[task:]
        self.timeline = [span for span in self.timeline if span["task"] <= task]
        self.anytime = [point for point in self.anytime if point["task"] <= task]
