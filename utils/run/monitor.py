"""What a learner reports while it works: progress, times, `metrics.jsonl` and checkpoints inside a task.

The learner calls a `Monitor` and never learns where things go. The plain `Monitor` only takes times, for tests and notebooks.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from utils.errors import UserError
from utils.files import write_atomic
from utils.run.checkpoint import Checkpoint, CheckpointStore, load_optimizer_tensors, optimizer_tensors
from utils.terminal import shows_bars

if TYPE_CHECKING:
    from models.base import BaseLearner, EpochStats

T = TypeVar("T")
SECONDS_BETWEEN_LOSSES = 0.5
STAGES = ("train", "statistics", "alignment", "evaluation")


class Monitor:
    """Base: times stages and shows nothing. Also what a learner may be given when nobody watches."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._started: dict[str, float] = {}  # stages that are going on
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
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - self._started.pop(name)

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

    def restore_epoch(self, learner: BaseLearner, optimizer: torch.optim.Optimizer) -> int:
        """Restore what an interrupted run had done of this task; returns the first epoch still to do."""
        return 0

    def end_epoch(self, learner: BaseLearner, optimizer: torch.optim.Optimizer, epoch: int, stats: EpochStats) -> None:
        """An epoch of stage 1 is done."""

    def before_alignment(self, learner: BaseLearner, task: int) -> None:
        """The network is trained and about to be aligned."""

    def end_alignment_epoch(self, task: int, epoch: int, loss: float, accuracy: float | None = None) -> None:
        """An epoch of alignment is done."""


class RunMonitor(Monitor):
    """Writes one seed's log, metrics and checkpoints.

    Args:
        folder: the seed's folder.
        store: where checkpoints go.
        logger: gets readable lines.
        meta: what every checkpoint holds beside tensors, as of now.
        checkpoint_every: epochs between checkpoints inside a task.
        writes: of several processes one writes.
    """

    def __init__(self, folder: Path, store: CheckpointStore, logger: logging.Logger, meta: Callable[[], dict[str, Any]],
                 checkpoint_every: int = 1, writes: bool = True) -> None:
        super().__init__()
        self.folder = folder
        self.store = store
        self.logger = logger
        self.meta = meta
        self.checkpoint_every = checkpoint_every
        self.writes = writes
        self.resume_from: Checkpoint | None = None  # a checkpoint inside the task that comes next
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

    def restore_epoch(self, learner: BaseLearner, optimizer: torch.optim.Optimizer) -> int:
        checkpoint, self.resume_from = self.resume_from, None
        if checkpoint is None or checkpoint.task != learner.task:
            return 0
        learner.load_trained(checkpoint.weights)
        load_optimizer_tensors(optimizer, checkpoint.state)
        learner.load_epoch_state({name: tensor.to(learner.fabric.device) for name, tensor in checkpoint.state.items()})
        self.log(f"task {learner.task + 1}: continuing after epoch {checkpoint.epoch}")
        return checkpoint.epoch or 0

    def end_epoch(self, learner: BaseLearner, optimizer: torch.optim.Optimizer, epoch: int, stats: EpochStats) -> None:
        task, epochs = learner.task, learner.config.epochs
        _refuse_bad_loss(stats.losses, f"task {task + 1}, epoch {epoch + 1}")
        rates = sorted({group["lr"] for group in optimizer.param_groups}, reverse=True)
        seconds = time.perf_counter() - self._epoch_start
        self.log(f"task {task + 1}/{learner.data.num_tasks}  epoch {epoch + 1}/{epochs}  loss {stats.loss:.4f}  "
                 f"train accuracy {stats.accuracy:.2f}  lr {'/'.join(f'{rate:.2g}' for rate in rates)}  {seconds:.1f} s")
        self.write({"kind": "epoch", "task": task, "epoch": epoch, "loss": stats.loss, "train_accuracy": stats.accuracy,
                    "lr": rates, "seconds": seconds})
        if (epoch + 1) % self.checkpoint_every == 0 and epoch + 1 < epochs:
            self.store.save(task, epoch + 1, weights=learner.network_state(),
                            state={**optimizer_tensors(optimizer), **learner.epoch_state()}, meta=self.meta())

    def before_alignment(self, learner: BaseLearner, task: int) -> None:
        if learner.config.save_before_ca and self.writes:
            path = self.folder / f"weights_before_ca_{task}.safetensors"
            write_atomic(path, save({k: v.detach().cpu().contiguous().clone() for k, v in learner.network_state().items()}))

    def end_alignment_epoch(self, task: int, epoch: int, loss: float, accuracy: float | None = None) -> None:
        if not math.isfinite(loss):
            raise UserError(f"the loss became {loss} in the alignment of task {task + 1}, epoch {epoch + 1}. Likely settings: ca_lr "
                            "(or lr) too high, ca_with_logit_norm too near 0, or ca_ridge too large. The last good checkpoint is "
                            "kept; change the "
                            "setting and start a new run.")
        tested = "" if accuracy is None else f"  top-1 {accuracy:.2f}"
        self.log(f"task {task + 1}  alignment epoch {epoch + 1}  loss {loss:.4f}{tested}")
        self.write({"kind": "alignment", "task": task, "epoch": epoch, "loss": loss, "top1": accuracy})

    def write(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        if not self.writes:
            return
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")

    def forget_after(self, task: int, epoch: int) -> None:
        """Drop the lines of metrics.jsonl that a resumed run will write again."""
        path = self.folder / "metrics.jsonl"
        if not self.writes or not path.exists():
            return
        kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _is_before(line, task, epoch)]
        write_atomic(path, "".join(line + "\n" for line in kept))


def _refuse_bad_loss(losses: Sequence[float], where: str) -> None:
    """Raises UserError for the first loss that is no number or infinite."""
    step = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)
    if step is not None:
        raise UserError(f"the loss became {losses[step]} in {where}, step {step + 1}. Likely settings: lr or bcb_lrscale too high, "
                        "precision 16-mixed (try bf16-mixed or 32-true), or std of the data set near 0. The last good checkpoint is "
                        "kept; change the setting and start a new run.")


def _is_before(line: str, task: int, epoch: int) -> bool:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:  # the line that was being written when the run stopped
        return False
    return record["task"] < task or (record["task"] == task and record["kind"] == "epoch" and record["epoch"] < epoch)
