"""Named streams of random numbers.

Nothing draws from a generator that outlives the step it serves. Each use asks for a stream by name,
`seed_of(torch_seed, "train", task, epoch)`, so the numbers do not depend on what ran before: a resumed run
continues bit for bit without any generator's state on disk, and the number of workers changes nothing.
"""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def seed_of(*name: int | str) -> int:
    """A 63-bit seed for the stream called `name`; equal names give equal seeds on every machine."""
    digest = hashlib.blake2b("/".join(map(str, name)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def numpy_generator(*name: int | str) -> np.random.Generator:
    """A fresh numpy generator for the stream called `name`."""
    return np.random.Generator(np.random.PCG64(seed_of(*name)))


def torch_generator(*name: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh torch generator on `device` for the stream called `name`."""
    import torch  # takes seconds, which the list of data sets does not need

    return torch.Generator(device=device).manual_seed(seed_of(*name))


def seed_globals(*name: int | str) -> None:
    """Seed python's, numpy's and torch's global generators.

    The project's own code never draws from them; drop-path, third-party layers and transforms do.
    """
    import torch

    seed = seed_of(*name)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
