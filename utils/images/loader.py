"""Batches from worker processes that live as long as the run.

A work item says which images to read and with which random numbers; whoever makes the batch, the result is the same. One
torch DataLoader serves every pass over every split: its dataset maps a work item to a whole batch, its sampler walks the
plan of the pass at hand.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from utils.errors import UserError
from utils.images.store import ImageStore
from utils.images.transforms import Transform
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


class MadeBatch(NamedTuple):
    """What a worker hands over: finished images, or uint8 ones and the random numbers to finish them with."""

    images: Tensor  # (B, C, S, S) float32; or uint8, (B, C, H, W) before or (B, C, S, S) after the crop
    labels: Tensor
    uniforms: Tensor  # (B, draws) float32 in [0, 1)
    stage: str  # "raw", "cut" or "done"
    augment: bool


class BatchMaker(Dataset):
    """Work item -> batch. Runs in a worker process or in the main one."""

    def __init__(self, stores: dict[str, ImageStore], train_transform: Transform, test_transform: Transform,
                 finish_here: bool) -> None:
        self.stores = stores
        self.transforms = {True: train_transform, False: test_transform}
        self.finish_here = finish_here  # else the accelerator crops (images of one size), flips and normalises

    def __getitem__(self, item: WorkItem) -> MadeBatch | UserError:
        transform = self.transforms[item.augment]
        uniforms = torch.rand(item.whole, transform.draws, generator=torch_generator(*item.stream))
        uniforms = uniforms[item.first:item.first + len(item.indices)]
        labels = torch.from_numpy(item.labels)
        try:
            images = self.stores[item.store].get(item.indices)
            if self.finish_here:
                return MadeBatch(transform(images, uniforms), labels, uniforms, "done", item.augment)
            if isinstance(images, Tensor):
                return MadeBatch(images, labels, uniforms, "raw", item.augment)
            return MadeBatch(transform.cut(images, uniforms), labels, uniforms, "cut", item.augment)
        except UserError as error:  # returned: raised in a worker it would come back wrapped in a traceback
            return error


class _Plan(Sampler):
    """The work items of the current pass; swapped for every pass."""

    def __init__(self) -> None:
        self.items: Sequence[WorkItem] = []

    def __iter__(self) -> Iterator[WorkItem]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


class BatchPool:
    """Makes batches in `num_workers` processes (0: in this one), finished on `device` if one is given.

    With `pin_memory` the workers' batches lie where a GPU can fetch them while it computes.
    """

    def __init__(self, maker: BatchMaker, num_workers: int, device: torch.device | None = None, pin_memory: bool = False) -> None:
        self.maker = maker
        self.num_workers = num_workers
        self.device = device
        self.pin_memory = pin_memory
        self._plan = _Plan()
        self._loader: DataLoader | None = None
        self._busy = False

    def run(self, items: Sequence[WorkItem]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images (B, C, S, S) float32, labels (B,)) of each item in order. Raises UserError for a bad image."""
        if self.num_workers == 0 or self._busy:  # busy: a pass inside another pass, e.g. a test within an epoch
            for item in items:
                yield self._finished(self.maker[item])
            return
        self._busy = True
        try:
            self._plan.items = items
            for made in self._start():
                yield self._finished(made)
        finally:
            self._busy = False

    def _start(self) -> DataLoader:
        """The one loader of the run; its processes start at the first pass."""
        if self._loader is None:
            self._loader = DataLoader(
                self.maker, batch_size=None, sampler=self._plan, num_workers=self.num_workers, persistent_workers=True,
                # fork shares the images in memory; elsewhere it is not safe
                multiprocessing_context="fork" if sys.platform == "linux" else "spawn", pin_memory=self.pin_memory,
                generator=torch.Generator())  # else every pass would draw from torch's global generator
        return self._loader

    def _finished(self, made: MadeBatch | UserError) -> tuple[Tensor, Tensor]:
        if isinstance(made, UserError):
            raise UserError(str(made))  # a new one: raising `made` would tie it to this frame, and the workers would outlive the pool
        if made.stage == "done":
            return made.images, made.labels
        transform = self.maker.transforms[made.augment]
        images, uniforms = made.images.to(self.device, non_blocking=True), made.uniforms.to(self.device)
        return (transform(images, uniforms) if made.stage == "raw" else transform.finish(images, uniforms)), made.labels
