"""Batches from worker processes that live as long as the run.

A work item says which images to read and with which random numbers; whoever makes the batch, the result is the same. One
torch DataLoader serves every pass over every split: its dataset maps a work item to a whole batch, its sampler walks the
plan of the pass at hand.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from utils.errors import UserError
from utils.images.store import ImageStore
from utils.images.transforms import Transform
from utils.images.workers import Sending, Watch, WorkerTrouble, shortage, trouble_told, words_of
from utils.machine.ahead import one_ahead
from utils.rng import torch_generator


@dataclass(frozen=True)
class WorkItem:
    """One batch, or one process's slice of it."""

    store: str  # "train" or "test"
    indices: np.ndarray  # (B,) int64, this process's images
    labels: np.ndarray  # (B,) int64
    augment: bool
    stream: tuple[int | str, ...] = ()  # name of the stream of random numbers of the whole batch
    first: int = 0  # where the slice starts in the whole batch
    whole: int = 0  # images in the whole batch, over all processes

    def uniforms(self, draws: int) -> Tensor:
        """The random numbers (B, draws) float32 in [0, 1) of these images; the same in whichever process."""
        whole = torch.rand(self.whole, draws, generator=torch_generator(*self.stream))
        return whole[self.first:self.first + len(self.indices)]


class MadeBatch(NamedTuple):
    """What a worker hands over; one tensor, since each takes a file descriptor on its way."""

    images: Tensor  # (B, C, S, S) float32, finished; or uint8, (B, C, H, W) before or (B, C, S, S) after the crop
    stage: str  # "raw", "cut" or "done"


class BatchMaker(Dataset):
    """Work item -> batch. Runs in a worker process or in the main one."""

    def __init__(self, stores: dict[str, ImageStore], train_transform: Transform, test_transform: Transform,
                 finish_here: bool) -> None:
        self.stores = stores
        self.transforms = {True: train_transform, False: test_transform}
        self.finish_here = finish_here  # else the accelerator crops (images of one size), flips and normalises

    def __getitem__(self, item: WorkItem) -> MadeBatch:
        """Raises UserError: an image cannot be read, or the user's own transforms do not fit it."""
        transform = self.transforms[item.augment]
        images = self.stores[item.store].get(item.indices)
        if self.finish_here:
            return MadeBatch(transform(images, item.uniforms(transform.draws)), "done")
        if isinstance(images, Tensor):
            return MadeBatch(images, "raw")
        return MadeBatch(transform.cut(images, item.uniforms(transform.draws)), "cut")


class _Plan(Sampler):
    """The work items of the current pass; swapped for every pass."""

    def __init__(self) -> None:
        self.items: Sequence[WorkItem] = []

    def __iter__(self) -> Iterator[WorkItem]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


class BatchPool:
    """Makes batches in `num_workers` processes (0: in this one) and brings them to `device`, which finishes them where `maker` does not.

    A GPU fetches, and finishes, the next batch while it computes on this one. Processes that break are never used again: the
    pass at hand ends with a UserError, the next one (another seed's) starts new ones.
    """

    def __init__(self, maker: BatchMaker, num_workers: int, device: torch.device | None = None) -> None:
        self.maker = maker
        self.num_workers = num_workers
        self.device = device or torch.device("cpu")
        self.pinned = self.device.type == "cuda"  # batches lie where a GPU can fetch them by itself
        self._plan = _Plan()
        self._loader: DataLoader | None = None
        self._watch = Watch()
        self._busy = False

    def run(self, items: Sequence[WorkItem]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images (B, C, S, S) float32, labels (B,)) of each item in order, on `device`.

        Raises:
            UserError: a bad image, or the worker processes have died, ran out of something or do not answer.
        """
        if self.num_workers == 0 or self._busy:  # busy: a pass inside another pass, e.g. a test within an epoch
            yield from one_ahead(((item, self.maker[item]) for item in items), self._finished, self.device)
            return
        self._busy = True
        try:
            yield from one_ahead(zip(items, self._from_workers(items), strict=True), self._finished, self.device)
        finally:
            self._busy = False

    def _from_workers(self, items: Sequence[WorkItem]) -> Iterator[MadeBatch]:
        self._plan.items = items
        batches = self._guarded(self._start)
        while not isinstance(batches, WorkerTrouble):
            made = self._guarded(next, batches, None)
            if made is None:
                return
            if isinstance(made, UserError):
                raise UserError(str(made))  # a new one: `made` itself would tie to this frame, and the workers would outlive the pool
            if isinstance(made, WorkerTrouble):
                batches = made  # and no reference to the loader's own iterator is left: new workers would inherit it
                break
            yield made
        words = self._watch.words() if self._watch.dying() else batches.words
        self._end()
        raise trouble_told(words, self.num_workers)

    def _guarded(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """What the loader gives, with a limit to the wait; a WorkerTrouble instead of its errors about its processes."""
        try:
            with self._watch.waiting():
                return call(*arguments)
        except (OSError, EOFError, RuntimeError) as error:
            if not (shortage(error) or self._watch.dying()):
                self._end()
                raise
            return WorkerTrouble(words_of(error))

    def _start(self) -> Iterator[MadeBatch | UserError | WorkerTrouble] | WorkerTrouble:
        """A pass of the one loader of the run; its processes start at the first pass."""
        if self._loader is not None:
            return WorkerTrouble("") if self._watch.died() else iter(self._loader)
        self._watch = Watch()
        weakref.finalize(self, self._watch.close)
        self._loader = DataLoader(
            Sending(self.maker), batch_size=None, sampler=self._plan, num_workers=self.num_workers, persistent_workers=True,
            # fork shares the images in memory; elsewhere it is not safe
            multiprocessing_context="fork" if sys.platform == "linux" else "spawn", pin_memory=self.pinned,
            generator=torch.Generator())  # else every pass would draw from torch's global generator
        with self._watch.starting():
            return iter(self._loader)

    def _end(self) -> None:
        self._watch.end()
        self._loader = None

    def _finished(self, item: WorkItem, made: MadeBatch) -> tuple[Tensor, Tensor]:
        images, labels = self._there(made.images), self._there(torch.from_numpy(item.labels))
        if made.stage == "done":
            return images, labels
        transform = self.maker.transforms[item.augment]
        uniforms = self._there(item.uniforms(transform.draws))
        return (transform(images, uniforms) if made.stage == "raw" else transform.finish(images, uniforms)), labels

    def _there(self, tensor: Tensor) -> Tensor:
        """`tensor` on the device, without a wait."""
        if self.pinned and not tensor.is_pinned():
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)
