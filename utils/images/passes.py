"""What worker processes make next: the passes that are open, and the one that is to come after them.

The workers are never drained: where a pass has no work left, the next one's first batches are made; where nobody has any, an
empty item is sent through in its place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from utils.rng import torch_generator


@dataclass(frozen=True, eq=False)
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

    def same(self, other: WorkItem) -> bool:
        """Whether both ask for the same batch."""
        return ((self.store, self.augment, self.stream, self.first, self.whole)
                == (other.store, other.augment, other.stream, other.first, other.whole)
                and np.array_equal(self.indices, other.indices) and np.array_equal(self.labels, other.labels))


class Pass:
    """One walk over work items."""

    def __init__(self, items: Sequence[WorkItem]) -> None:
        self.items = items
        self.given = 0  # items that the workers have got
        self.coming = 0  # of those, whose batches are not here yet
        self.made: deque[Any] = deque()  # batches that are here and were not asked for yet
        self.followed_by: Pass | None = None

    def wants_more(self, limit: int) -> bool:
        return self.given < len(self.items) and self.coming + len(self.made) < limit

    def done(self) -> bool:
        return self.given == len(self.items) and not self.coming and not self.made


class Plan(Sampler):
    """Walks the work items of all passes, without end.

    A pass inside another one comes first, the expected one last.

    Args:
        limit: batches of one pass that may be in the making, or made and not asked for.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.open: list[Pass] = []  # the innermost is the last
        self.expected: Pass | None = None
        self._sent: deque[Pass | None] = deque()  # whose batches arrive, in this order; None: an empty item

    def __iter__(self) -> Iterator[WorkItem | None]:
        while True:
            chosen = self._next()
            self._sent.append(chosen)
            if chosen is None:
                yield None
                continue
            chosen.coming += 1
            chosen.given += 1
            yield chosen.items[chosen.given - 1]

    def begin(self, items: Sequence[WorkItem], then: Sequence[WorkItem] = ()) -> Pass:
        """Open a pass; if it is the expected one, some of its batches are made already.

        Args:
            then: items of the pass that is expected next.
        """
        found, expected = Pass(items), self.expected
        if expected is not None and len(items) == len(expected.items) and all(map(WorkItem.same, items, expected.items)):
            found, self.expected = expected, None
        self.open.append(found)
        if then:
            self.expected = found.followed_by = Pass(then)
        return found

    def end(self, ended: Pass) -> None:
        """Close a pass. After one that was left early nothing is expected."""
        self.open.remove(ended)
        if not ended.done() and self.expected is ended.followed_by:
            self.expected = None

    def arrived(self, made: Any) -> None:
        """Lay the batch that arrived next where it belongs; what belongs to a closed pass is dropped."""
        owner = self._sent.popleft()
        if owner is None:
            return
        owner.coming -= 1
        if owner in self.open or owner is self.expected:
            owner.made.append(made)

    def idles(self) -> bool:
        """Whether an empty item is what arrives next, at once, and some pass has work for its place."""
        return self._sent[0] is None and self._next() is not None

    def _next(self) -> Pass | None:
        last = [self.expected] if self.expected is not None else []
        return next((each for each in (*reversed(self.open), *last) if each.wants_more(self.limit)), None)
