"""Where the time goes (`--profile`): a torch.profiler trace of every stage, and one table.

    <run>/seed<N>/profile/<stage>.json    trace, for chrome://tracing or ui.perfetto.dev
    <run>/seed<N>/profile/stages.txt      seconds per stage so far, and each stage's most expensive operations

The first time each stage runs is traced: of training a few steps, of the others all. Tracing slows those down, so their
seconds are not those of an ordinary run. Where torch has CUDA but cannot trace it (no driver, no CUPTI), the CPU alone is traced.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile, supported_activities

from utils.files import replacing, storage_errors_told, write_atomic
from utils.last_resort import one_sentence
from utils.run.monitor import RunMonitor

T = TypeVar("T")
WARM_UP, TRACED = 2, 10  # steps of training that are passed over, and those that are traced
ROWS = 15


class ProfilingMonitor(RunMonitor):
    """A run's monitor that also traces."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.tables: dict[str, str] = {}  # stage -> its operations

    @cached_property
    def activities(self) -> list[ProfilerActivity]:
        """What can be traced here, tried once."""
        activities, problem = traceable_activities()
        if problem:
            self.logger.warning(f"--profile: CUDA cannot be traced here ({problem}), so the traces and tables show the CPU alone")
        return activities

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        with super().stage(name):
            if name in self.tables or name == "train":  # training is traced in `bar`, step by step
                yield
            else:
                profiler = profile(activities=self.activities)
                with profiler:
                    yield
                self._keep(name, profiler)
        self._write_table()

    def bar(self, batches: Iterable[T], description: str) -> Iterable[T]:
        shown = super().bar(batches, description)
        return shown if "train" in self.tables or self.current_stage != "train" else self._traced(shown)

    def _traced(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches; what is done between the third and the thirteenth is traced."""
        profiler = profile(activities=self.activities)
        step = 0
        for step, batch in enumerate(batches):
            if step == WARM_UP:
                profiler.start()
            if step == WARM_UP + TRACED:
                profiler.stop()
                self._keep("train", profiler)
            yield batch
        if WARM_UP <= step < WARM_UP + TRACED:
            profiler.stop()
            self._keep("train", profiler)

    def _keep(self, stage: str, profiler: profile) -> None:
        if not self.writes:
            self.tables[stage] = ""
            return
        folder = self.folder / "profile"
        with storage_errors_told(folder / f"{stage}.json") as path:
            folder.mkdir(exist_ok=True)
            with replacing(path) as temporary:
                profiler.export_chrome_trace(str(temporary))
        key = "self_device_time_total" if ProfilerActivity.CUDA in self.activities else "self_cpu_time_total"
        self.tables[stage] = profiler.key_averages().table(sort_by=key, row_limit=ROWS, max_name_column_width=40)

    def _write_table(self) -> None:
        if not self.writes:
            return
        total = sum(self.seconds.values()) or 1.0
        lines = [f"{'stage':14} {'seconds':>10} {'share':>8}"]
        lines += [f"{name:14} {seconds:10.2f} {100 * seconds / total:7.1f}%" for name, seconds in self.seconds.items()]
        parts = ["\n".join(lines), *(f"{name}\n{table}" for name, table in self.tables.items())]
        with storage_errors_told(self.folder / "profile" / "stages.txt") as path:
            write_atomic(path, "\n\n".join(parts) + "\n")


def traceable_activities() -> tuple[list[ProfilerActivity], str]:
    """The CPU, and CUDA where a trace of it begins and ends; where torch has CUDA and none does, also why."""
    cpu = [ProfilerActivity.CPU]
    if not torch.cuda.is_available():
        return cpu, ""
    if ProfilerActivity.CUDA not in supported_activities():
        return cpu, "this torch was built without its tracer, CUPTI"
    try:
        with profile(activities=[*cpu, ProfilerActivity.CUDA]):
            pass
    except Exception as error:  # of whatever kind the driver's, CUPTI's or torch's own check is
        return cpu, one_sentence(error)
    return [*cpu, ProfilerActivity.CUDA], ""
