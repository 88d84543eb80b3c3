"""The next batch on its way to the GPU while the GPU computes on this one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor


def one_ahead(jobs: Iterable[tuple], work: Callable[..., tuple[Tensor, ...]], device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """`work(*job)` of each job in order. On a CUDA device a second stream runs it, for the next job before this one's is yielded.

    Args:
        work: gives tensors on `device`; what it does there must not wait.
    """
    if device.type != "cuda":
        for job in jobs:
            yield work(*job)
        return
    stream = torch.cuda.Stream(device)
    waiting: tuple[tuple[Tensor, ...], torch.cuda.Event] | None = None
    for job in jobs:
        with torch.cuda.stream(stream):
            coming = work(*job), stream.record_event()
        if waiting is not None:
            yield _handed(*waiting)
        waiting = coming
    if waiting is not None:
        yield _handed(*waiting)


def _handed(tensors: tuple[Tensor, ...], ready: torch.cuda.Event) -> tuple[Tensor, ...]:
    """`tensors` for the stream at hand, which begins with them once they are there; the host does not wait."""
    current = torch.cuda.current_stream(tensors[0].device)
    current.wait_event(ready)
    for tensor in tensors:
        tensor.record_stream(current)  # else its memory could be given to the next batch while it is still read
    return tensors
