"""What one seed has measured so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from utils.formulas import metrics


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

    def add(self, evaluation: metrics.Evaluation, validation: float | None, all_domains: float | None) -> None:
        self.top1_curve.append(evaluation.top1)
        self.top5_curve.append(evaluation.top5)
        self.task_il_curve.append(evaluation.task_il)
        self.accuracy_rows.append(evaluation.task_accuracies)
        self.grouped.append(evaluation.grouped)
        self.validation_curve.append(validation)
        self.all_domains_curve.append(all_domains)

    def skip_to(self, task: int) -> None:
        """Nothing was measured after the tasks from here to `task` (another run learned them)."""
        for done in range(len(self.accuracy_rows), task + 1):
            self.add(metrics.Evaluation(None, None, [None] * (done + 1), None, {"old": None, "new": None}, None, None), None, None)
            self.memory_curve.append(dict(self.memory_curve[-1]) if self.memory_curve else {})
            self.diagnostics.append({})

    def drop_after(self, task: int) -> None:
        """Forget task `task` and everything later."""
        for curve in (self.top1_curve, self.top5_curve, self.task_il_curve, self.accuracy_rows, self.grouped, self.validation_curve,
                      self.all_domains_curve, self.memory_curve, self.diagnostics):
            del curve[task:]
