"""How long a run will still take, from what its tasks took so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

WITH_CLASSES_SEEN = ("alignment", "evaluation")  # stages that go over all classes seen; the others over the task's own


def seconds_left(task_seconds: Sequence[Mapping[str, float]], task_sizes: Sequence[int], seeds: int) -> float:
    """Seconds for the tasks of this seed that are not done yet, and for `seeds` whole seeds after it.

    Every stage is taken to cost the same for each class that it goes over; a stage that a task left out (the first task has no
    alignment) is left out for the same task of the next seeds.

    Args:
        task_seconds: by stage, of each task done so far; task_sizes: classes of every task.
    """
    done = len(task_seconds)
    total = 0.0
    for stage in {name for seconds in task_seconds for name in seconds}:
        spent = [seconds.get(stage, 0.0) for seconds in task_seconds]
        units = list(accumulate(task_sizes)) if stage in WITH_CLASSES_SEEN else list(task_sizes)
        cost = sum(spent) / max(sum(unit for unit, seconds in zip(units, spent, strict=False) if seconds), 1)
        skipped = sum(unit for unit, seconds in zip(units, spent, strict=False) if not seconds)
        total += cost * (sum(units[done:]) + seeds * (sum(units) - skipped))
    return total
