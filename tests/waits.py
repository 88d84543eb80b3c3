"""What would make a program on a GPU wait for the device, counted on the processor."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select, torch.ops.aten.unique_dim}


class Waits(TorchDispatchMode):
    """Counts operations whose result the host needs: .item(), a tensor as a bool, nonzero, indexing by a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        by_mask = func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_) and any(
            index is not None and index.dtype == torch.bool for index in args[1])
        self.count += func.overloadpacket in WAITING or by_mask
        return func(*args, **(kwargs or {}))
