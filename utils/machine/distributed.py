"""Several processes that share one run: what they exchange, and what only the first of them does.

Every process holds the same network and sees its own part of each batch; whatever is computed from all images is
gathered, in the images' order, so that all processes go on with the same numbers. With one process each function here
gives back what it was given.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from lightning_fabric import Fabric
from torch import Tensor

from utils.errors import UserError

T = TypeVar("T")
LOST = ("gloo/transport", "onnection closed by peer", "onnection reset by peer")  # in errors of gloo, which have no class of their own
_started: list[subprocess.Popen] = []  # by the first config of a command; the later ones go on with them
SECONDS_TO_END = 20.0  # that the system may take to tell that a process is dead whose connection broke


def launch(fabric: Fabric) -> None:
    """Start the other processes, unless torchrun has; every process but the first becomes silent.

    Raises:
        UserError: an earlier run of the same command used another number of processes, or this is an interactive session.
    """
    if several_processes() and torch.distributed.get_world_size() != fabric.world_size:
        raise UserError(f"device: this config asks for {fabric.world_size} process(es), the one before it for "
                        f"{torch.distributed.get_world_size()}; configs of one command must use as many devices each. Run them one by one.")
    if fabric.world_size == 1:
        return
    if getattr(fabric.strategy.launcher, "is_interactive_compatible", True) is False and not runs_a_file():
        raise UserError(f"device: {fabric.world_size} devices need {fabric.world_size} processes, each of which starts this program's file "
                        "again, and an interactive session (a notebook, python -, python -c) has none. Ask for one device here, or run "
                        "python main.py --config FILE, or a file of your own.")
    fabric.launch()
    _started.extend(getattr(fabric.strategy.launcher, "procs", None) or [])
    if not fabric.is_global_zero:
        logging.disable(logging.CRITICAL)


def runs_a_file() -> bool:
    """Whether this process was started from a python file or module, so that another can be started likewise."""
    main = sys.modules.get("__main__")
    return getattr(main, "__spec__", None) is not None or Path(getattr(main, "__file__", None) or "").is_file()


def several_processes() -> bool:
    """Whether this process is one of several."""
    return torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


def end_processes() -> None:
    """End the processes that `launch` started: after an error in the first one nobody would answer them."""
    for process in _started:
        process.terminate()


@contextmanager
def processes_ended_on_error(fabric: Fabric) -> Iterator[None]:
    """An error or a signal inside, in the process that started the others, ends them too. Raises UserError where one of them was lost."""
    try:
        yield
    except BaseException as error:
        lost = _lost_process(fabric, error)
        end_processes()
        if lost:
            raise UserError(f"{lost}, and the others stopped with it. Checkpoints written so far are intact: continue with "
                            "--resume.") from None
        raise


def _lost_process(fabric: Fabric, error: BaseException) -> str:
    """What is known of the process that ended where `error` says that one does not answer; empty for any other error."""
    broken = isinstance(error, torch.distributed.DistError) or any(words in str(error) for words in LOST)
    if fabric.world_size == 1 or not isinstance(error, RuntimeError) or not broken:
        return ""
    end = time.monotonic() + SECONDS_TO_END
    while _started and time.monotonic() < end:
        for rank, process in enumerate(_started, start=1):
            if process.poll() is not None:
                return f"process {rank} of this run, counted from 0, {_how_it_ended(process.returncode)}"
        time.sleep(0.05)
    return "the connection to another process of this run broke, as it does when that one is killed"


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code} (what it printed is above)"
    reason = ", which the system does when memory is used up" if code == -signal.SIGKILL else ""
    return f"was ended by signal {-code}{reason}"


def on_first(fabric: Fabric, action: Callable[[], T]) -> T:
    """Run `action` in the first process and give its result to all; after its UserError the others leave silently."""
    if fabric.world_size == 1:
        return action()
    result, error = None, None
    if fabric.is_global_zero:
        try:
            result = action()
        except UserError as mistake:
            error = mistake
    result, failed = fabric.broadcast((result, error is not None))
    if error is not None:
        raise error
    if failed:
        sys.exit(2)
    return result


def gather_rows(fabric: Fabric, rows: Tensor) -> Tensor:
    """The rows (n_r, ...) of all processes, those of the first process first: (sum of n_r, ...).

    The processes may hold different numbers of rows, also none; then what a row looks like is taken from the others.
    """
    if fabric.world_size == 1:
        return rows
    shapes = _all_gather(fabric, torch.tensor(rows.shape, device=rows.device))  # (processes, dimensions)
    counts, row_shape = shapes[:, 0].tolist(), shapes[:, 1:].amax(dim=0).tolist()
    padded = rows.new_zeros(max(counts), *row_shape)
    if len(rows):
        padded[: len(rows)] = rows
    gathered = _all_gather(fabric, padded)  # (processes, longest, ...)
    return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])


def _all_gather(fabric: Fabric, tensor: Tensor) -> Tensor:
    """Equally shaped tensors of all processes, stacked in front. (Fabric's own records a graph for gradients.)"""
    parts = [torch.empty_like(tensor) for _ in range(fabric.world_size)]
    torch.distributed.all_gather(parts, tensor)
    return torch.stack(parts)


def share_of_batch(fabric: Fabric, count: int, whole: int) -> float | None:
    """Weight of this process's part of a batch, count / (mean count of all processes); None for one process.

    The mean over processes of weight * (mean loss of the part) is the mean loss of the whole batch, however unequal
    its parts are; so are the gradients that DDP averages.

    Args:
        count: images of this process's part; whole: images of the batch, over all processes.
    """
    return None if fabric.world_size == 1 else count * fabric.world_size / max(whole, 1)


@contextmanager
def first_process_first(fabric: Fabric) -> Iterator[None]:
    """Inside, the first process goes ahead and the others follow: what it downloads or writes is there when they look."""
    if fabric.world_size == 1:
        yield
        return
    if not fabric.is_global_zero:
        fabric.barrier("first process first")
    try:
        yield
    finally:
        if fabric.is_global_zero:
            fabric.barrier("first process first")


def copy_from_first(fabric: Fabric, tensors: Iterable[Tensor]) -> None:
    """Overwrite the tensors with those of the first process."""
    if fabric.world_size > 1:
        for tensor in tensors:
            torch.distributed.broadcast(tensor.detach(), src=0)
