"""Work on many classes at once: which ones go together, in memory that is used again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from math import prod

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from models.by_class import positions_by_class, require_finite

# Numbers of features that are worked on at once: what a processor's cache holds, and what keeps a GPU busy.
NUMBERS_AT_ONCE = {"cpu": 2**20, "cuda": 2**26}
LIKE_SIZED = 0.8  # classes of a batch have at least this share of the largest one's images; the rest is padding
SMALL = 2**16  # numbers of one class below which float64 costs nothing to speak of


class Workspace:
    """Memory that is used again and again: on a processor, fresh memory costs about as much time as the arithmetic on it."""

    def __init__(self) -> None:
        self.buffers: dict[str, Tensor] = {}

    def take(self, name: str, like: Tensor, *shape: int) -> Tensor:
        """A tensor of `shape` to overwrite, of the type and on the device of `like`; the next one of that name may share its memory."""
        size, found = prod(shape), self.buffers.get(name)
        if found is None or len(found) < size or found.device != like.device or found.dtype != like.dtype:
            found = self.buffers[name] = like.new_empty(size)
        return found[:size].view(shape)


@dataclass(frozen=True)
class ClassBatch:
    """Classes of about as many images: labels and counts (K,), means (K, d) float64, centred (K, n, d) features, float32 or, where
    that is cheap, float64; 0 beyond a class's count. The next batch, and `exact_factors`, overwrite `centred`.
    """

    labels: list[int]
    counts: list[int]
    means: Tensor
    centred: Tensor
    space: Workspace

    @property
    def ragged(self) -> bool:
        return min(self.counts) < self.counts[0]

    def sizes(self) -> Tensor:
        """(K, 1, 1) images of each class."""
        return torch.tensor(self.counts, dtype=self.centred.dtype, device=self.centred.device)[:, None, None]


def numbers_at_once(like: Tensor) -> int:
    """How many numbers to work on at once on the device of `like`."""
    return NUMBERS_AT_ONCE["cuda" if like.is_cuda else "cpu"]


def equal_runs(ranks: list[int], at_most: Callable[[int], int]) -> Iterator[tuple[slice, int]]:
    """Classes in a row that have the same rank, `at_most(rank)` of them at a time but at least one, and that rank."""
    first = 0
    for rank, same in groupby(ranks):
        end, step = first + len(list(same)), max(at_most(rank), 1)
        for start in range(first, end, step):
            yield slice(start, min(start + step, end)), rank
        first = end


def class_batches(features: Tensor, labels: Tensor, classes: range) -> Iterator[ClassBatch]:
    """All `classes`, those with most images first; a class without images has the mean 0.

    Args:
        features: (N, d) float32; labels: (N,) int64.

    Raises:
        UserError: a feature is not finite.
    """
    positions, d, space = positions_by_class(labels, classes), features.shape[1], Workspace()
    by_size = sorted(range(len(classes)), key=lambda c: -len(positions[c]))
    while by_size:
        n = len(positions[by_size[0]])
        at_once = max(numbers_at_once(features) // max(n * d, 1), 1)
        members = [c for c in by_size[:at_once] if len(positions[c]) >= LIKE_SIZED * n and (len(positions[c]) - 1 > d) == (n - 1 > d)]
        by_size = by_size[len(members):]
        yield _batch(features, [positions[c] for c in members], [classes[c] for c in members], space)


def _batch(features: Tensor, positions: list[Tensor], labels: list[int], space: Workspace) -> ClassBatch:
    counts = [len(found) for found in positions]
    sizes = torch.tensor(counts, device=features.device)[:, None]  # (K, 1)
    places = pad_sequence(positions, batch_first=True)  # (K, n)
    centred = space.take("features", features, *places.shape, features.shape[1])
    torch.index_select(features, 0, places.flatten(), out=centred.view(-1, features.shape[1]))
    beyond = (torch.arange(places.shape[1], device=features.device) >= sizes)[..., None] if min(counts) < counts[0] else None
    if beyond is not None:
        centred.masked_fill_(beyond, 0)
    centred = centred.double() if centred[0].numel() <= SMALL else centred
    means = torch.zeros(len(counts), features.shape[1], dtype=torch.float64, device=features.device)
    for _ in range(2):  # what rounding leaves of the mean is gone after the second time
        mean = centred.sum(dim=1) / sizes.clamp_min(1)
        means += mean
        centred -= mean[:, None]
        if beyond is not None:
            centred.masked_fill_(beyond, 0)
    require_finite(means, labels)
    return ClassBatch(labels, counts, means, centred, space)
