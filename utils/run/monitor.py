"""What a learner reports while it works: progress, times and `metrics.jsonl`. It only listens: it saves and restores nothing.

The learner calls a `Monitor` and never learns where things go. The plain `Monitor` only takes times, for tests and notebooks.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from utils.files import storage_errors_told, write_atomic
from utils.run.events import Events
from utils.run.metrics_file import METRICS, read_metrics
from utils.terminal import shows_bars

T = TypeVar("T")
Span = dict[str, Any]  # "stage", "begin" and "end" in seconds since the seed began, pauses left out
SECONDS_BETWEEN_LOSSES = 0.5
STAGES = ("train", "statistics", "alignment", "evaluation")


class Monitor:
    """Base: times stages and shows nothing. Also what a learner may be given when nobody watches."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._started: dict[str, float] = {}  # stages that are going on
        self.trained_images = 0  # that went through stage 1
        self.spans: list[Span] = []  # stages that ended since the list was last taken
        self._zero = time.perf_counter()  # where the spans count from
        self.current_stage = ""  # that is going on, or that an error ended; for messages

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to `seconds[name]`."""
        self._started[name] = time.perf_counter()
        self.current_stage = name
        try:
            yield
            self.current_stage = ""
        finally:
            now, started = time.perf_counter(), self._started.pop(name)
            self.seconds[name] = self.seconds.get(name, 0.0) + now - started
            self.spans.append({"stage": name, "begin": started - self._zero, "end": now - self._zero})

    def take_spans(self) -> list[Span]:
        """The stages that ended since the last call."""
        taken, self.spans = self.spans, []
        return taken

    def continue_after(self, seconds: Mapping[str, float], trained_images: int, spans: Sequence[Span]) -> None:
        """Go on from what an interrupted run had measured."""
        self.seconds.update(seconds)
        self.trained_images = trained_images
        self._zero = time.perf_counter() - max((span["end"] for span in spans), default=0.0)

    def seconds_so_far(self) -> dict[str, float]:
        """`seconds`, with what the stages that are going on have taken until now."""
        now = time.perf_counter()
        return {name: seconds + (now - self._started[name] if name in self._started else 0.0) for name, seconds in self.seconds.items()}

    def bar(self, batches: Iterable[T], description: str) -> Iterable[T]:
        return batches

    def step_shower(self, bar: Iterable, optimizer: torch.optim.Optimizer) -> Callable[[Tensor], None] | None:
        """What to call with each step's loss; None where nobody watches."""
        return None

    def log(self, message: str) -> None:
        """One line for the log and the terminal."""

    def begin_epoch(self, task: int, epoch: int, epochs: int) -> None:
        """An epoch of stage 1 begins; nothing was drawn for it yet. `task` and `epoch` count from 0."""

    def end_epoch(self, task: int, epoch: int, epochs: int, losses: Sequence[float], accuracy: float, groups: Sequence[dict]) -> None:
        """An epoch of stage 1 is done; `task` and `epoch` count from 0.

        Args:
            losses: one per step; accuracy: percent over the training passes; groups: the optimiser's, with their rates and names.
        """

    def end_alignment_epoch(self, task: int, epoch: int, loss: float, accuracy: float | None = None) -> None:
        """An epoch of alignment is done."""


class RunMonitor(Monitor):
    """Writes one seed's log and metrics.

    Args:
        folder: the seed's folder.
        logger: gets readable lines.
        num_tasks: of the stream.
        writes: of several processes one writes.
        events: hears each line of metrics.jsonl too.
    """

    def __init__(self, folder: Path, logger: logging.Logger, num_tasks: int, writes: bool = True, events: Events | None = None) -> None:
        super().__init__()
        self.folder = folder
        self.logger = logger
        self.num_tasks = num_tasks
        self.writes = writes
        self.events = events or Events(tells=False)
        self._epoch_start = time.perf_counter()

    def log(self, message: str) -> None:
        self.logger.info(message)

    def bar(self, batches: Iterable[T], description: str) -> Iterable[T]:
        self._epoch_start = time.perf_counter()
        return tqdm(batches, desc=description, leave=False, dynamic_ncols=True, disable=not (self.writes and shows_bars()))

    def step_shower(self, bar: Iterable, optimizer: torch.optim.Optimizer) -> Callable[[Tensor], None] | None:
        if not isinstance(bar, tqdm) or bar.disable:
            return None
        shown = time.monotonic()

        def show(loss: Tensor) -> None:
            nonlocal shown
            if time.monotonic() - shown > SECONDS_BETWEEN_LOSSES:  # reading a loss makes the device wait
                rate = max(group["lr"] for group in optimizer.param_groups)
                bar.set_postfix(loss=f"{loss.item():.4f}", lr=f"{rate:.2g}")
                shown = time.monotonic()
        return show

    def begin_epoch(self, task: int, epoch: int, epochs: int) -> None:
        self.events.tell("epoch_start", task=task + 1, epoch=epoch + 1, epochs=epochs)

    def end_epoch(self, task: int, epoch: int, epochs: int, losses: Sequence[float], accuracy: float, groups: Sequence[dict]) -> None:
        loss = sum(losses) / max(len(losses), 1)
        rates = {group.get("name", f"group {i}"): group["lr"] for i, group in enumerate(groups, start=1)}
        seconds = time.perf_counter() - self._epoch_start
        self.log(f"task {task + 1}/{self.num_tasks}  epoch {epoch + 1}/{epochs}  loss {loss:.4f}  train accuracy {accuracy:.2f}  "
                 f"lr {', '.join(f'{name} {rate:.2g}' for name, rate in rates.items())}  {seconds:.1f} s")
        self.write({"kind": "epoch", "task": task + 1, "epoch": epoch + 1, "loss": loss, "train_accuracy": accuracy, "lr": rates,
                    "seconds": seconds})

    def end_alignment_epoch(self, task: int, epoch: int, loss: float, accuracy: float | None = None) -> None:
        tested = "" if accuracy is None else f"  top-1 {accuracy:.2f}"
        self.log(f"task {task + 1}  alignment epoch {epoch + 1}  loss {loss:.4f}{tested}")
        self.write({"kind": "alignment", "task": task + 1, "epoch": epoch + 1, "loss": loss, "top1": accuracy})

    def write(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl, whole, so that whoever reads along sees it at once, and tell it. Raises StorageError."""
        if self.writes:
            with storage_errors_told(self.folder / METRICS) as path, path.open("ab") as stream:
                stream.write(f"{json.dumps(record)}\n".encode())
        self.events.tell(**record)

    def forget_after(self, task: int, epoch: int) -> None:
        """Drop the lines of metrics.jsonl that a run resumed in `task`, with `epoch` epochs done, will write again.

        Damaged ones go too, and what was between them stays. Raises StorageError.
        """
        path = self.folder / METRICS
        if self.writes and path.exists():
            kept = [record for record in read_metrics(path, self.logger.warning) if _is_before(record, task, epoch)]
            with storage_errors_told(path):
                write_atomic(path, "".join(f"{json.dumps(record)}\n" for record in kept))


def _is_before(record: dict[str, Any], task: int, epoch: int) -> bool:
    return record["task"] <= task or (record["task"] == task + 1 and record["kind"] == "epoch" and record["epoch"] <= epoch)
