"""Batches from worker processes that live as long as the run.

A work item says which images to read and with which random numbers; whoever makes the batch, the result is the same. One
walk over one torch DataLoader serves every pass over every split, for the whole run: its dataset maps a work item to a whole
batch, its sampler is the plan of all passes (passes.py).
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from utils.errors import UserError
from utils.images.passes import Pass, Plan, WorkItem
from utils.images.store import ImageStore
from utils.images.transforms import Transform
from utils.images.workers import Sending, Watch, WorkerTrouble, shortage, trouble_told, words_of
from utils.machine.ahead import one_ahead


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

    def __getitem__(self, item: WorkItem | None) -> MadeBatch | None:
        """Of an empty item nothing. Raises UserError: an image cannot be read, or the user's own transforms do not fit it."""
        if item is None:
            return None
        transform = self.transforms[item.augment]
        images = self.stores[item.store].get(item.indices)
        if self.finish_here:
            return MadeBatch(transform(images, item.uniforms(transform.draws)), "done")
        if isinstance(images, Tensor):
            return MadeBatch(images, "raw")
        return MadeBatch(transform.cut(images, item.uniforms(transform.draws)), "cut")


PREFETCHED = 2  # batches per worker that are made ahead


class BatchPool:
    """Makes batches in `num_workers` processes (0: in this one) and brings them to `device`, which finishes them where `maker` does not.

    A GPU fetches, and finishes, the next batch while it computes on this one. Processes that break are never used again: the
    pass at hand, and every pass around it, ends with a UserError; the next one (another seed's) starts new ones.
    """

    def __init__(self, maker: BatchMaker, num_workers: int, device: torch.device | None = None) -> None:
        self.maker = maker
        self.num_workers = num_workers
        self.device = device or torch.device("cpu")
        self.pinned = self.device.type == "cuda"  # batches lie where a GPU can fetch them by itself
        if not maker.finish_here:
            for transform in maker.transforms.values():
                transform.prepare(self.device)
        self._plan = Plan(PREFETCHED * num_workers)
        self._arriving: Iterator[Any] | None = None  # the loader's own walk over the plan; None: no processes
        self._watch = Watch()

    def run(self, items: Sequence[WorkItem], then: Sequence[WorkItem] = ()) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images (B, C, S, S) float32, labels (B,)) of each item in order, on `device`.

        Args:
            then: items of the pass that comes next, whose first batches the workers make while this one's last are computed on.

        Raises:
            UserError: a bad image, or the worker processes have died, ran out of something or do not answer.
        """
        with closing(self._from_workers(items, then) if self.num_workers else self._made_here(items)) as batches:
            yield from one_ahead(zip(items, batches, strict=True), self._finished, self.device)

    def _made_here(self, items: Sequence[WorkItem]) -> Generator[MadeBatch, None, None]:
        for item in items:
            yield self.maker[item]

    def _from_workers(self, items: Sequence[WorkItem], then: Sequence[WorkItem]) -> Generator[MadeBatch, None, None]:
        plan = self._plan
        mine = plan.begin(items, then)
        try:
            self._need_processes()
            for _ in items:
                if plan is not self._plan:
                    raise trouble_told("they ended in another pass over the images", self.num_workers)
                yield self._next_of(mine)
        finally:
            plan.end(mine)

    def _need_processes(self) -> None:
        """Start them, at the first pass."""
        if self._arriving is not None:
            if self._watch.died():
                raise self._broken("")
            return
        started = self._guarded(self._start)
        if isinstance(started, WorkerTrouble):
            raise self._broken(started.words)
        self._arriving = started

    def _next_of(self, mine: Pass) -> MadeBatch:
        while not mine.made:
            self._receive()
        made = mine.made.popleft()
        while self._plan.idles():
            self._receive()
        if isinstance(made, UserError):
            raise UserError(str(made))  # a new one: `made` itself would tie to this frame, and the workers would outlive the pool
        return made

    def _receive(self) -> None:
        """Wait for the batch, of whichever pass, that the workers hand over next; they get another item for it."""
        made = self._guarded(next, self._arriving)
        if isinstance(made, WorkerTrouble):
            raise self._broken(made.words)
        self._plan.arrived(made)

    def _guarded(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """What the loader gives, with a limit to the wait; a WorkerTrouble instead of its errors about its processes."""
        try:
            with self._watch.waiting():
                return call(*arguments)
        except BaseException as error:
            if isinstance(error, (OSError, EOFError, RuntimeError)) and (shortage(error) or self._watch.dying()):
                return WorkerTrouble(words_of(error))
            self._end()  # a bug, or Ctrl-C: which batch arrives next is not known any more
            raise

    def _start(self) -> Iterator[MadeBatch | UserError | WorkerTrouble | None]:
        """Start the processes, which begin with what is planned."""
        self._watch = Watch()
        weakref.finalize(self, self._watch.close)
        loader = DataLoader(
            Sending(self.maker), batch_size=None, sampler=self._plan, num_workers=self.num_workers, prefetch_factor=PREFETCHED,
            # fork shares the images in memory; elsewhere it is not safe
            multiprocessing_context="fork" if sys.platform == "linux" else "spawn", pin_memory=self.pinned,
            generator=torch.Generator())  # else it would draw from torch's global generator
        with self._watch.starting():
            return iter(loader)

    def _broken(self, words: str) -> UserError:
        """The error that ends the pass, after the processes' end."""
        words = self._watch.words() if self._watch.dying() else words
        self._end()
        return trouble_told(words, self.num_workers)

    def _end(self) -> None:
        self._watch.end()
        self._plan = Plan(PREFETCHED * self.num_workers)
        self._arriving = None  # new workers would inherit it

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
