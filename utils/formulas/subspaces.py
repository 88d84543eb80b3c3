"""Which directions old tasks use and which are free: DualGPM (InfLoRA), and the ranks that are kept (E2-LoRA).

All matrices here are a layer's: D the width of its input, C = mean of x x' (D, D) over a task's tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TAU_STEP = 1e-5  # E2-LoRA: tau falls from 1 - TAU_STEP by TAU_STEP


def kept_rank(singular_values: Tensor, energy: float) -> int:
    """The fewest leading of `singular_values` (n,), descending, whose squares hold `energy` of the sum of all."""
    if energy >= 1:
        return len(singular_values)
    squares = singular_values.double().square()
    return int((squares.cumsum(dim=0) < energy * squares.sum()).sum()) + 1 if squares.sum() > 0 else 0


def truncate(matrix: Tensor, energy: float) -> Tensor:
    """The part of (m, n) in its fewest leading singular directions that hold `energy` of its sum of squares."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    kept = kept_rank(s, energy)
    return (u[:, :kept] * s[:kept]) @ vh[:kept]


# InfLoRA (Liang and Li, CVPR 2024, arXiv 2404.00228) ---------------------------------------------------------------


@dataclass(frozen=True)
class GradientSpace:
    """What DualGPM keeps of a layer: orthonormal columns M (D, m) of what old tasks use, or of what is `free`."""

    basis: Tensor
    free: bool = False  # the release calls it "retain", else "remove"

    @classmethod
    def empty(cls, like: Tensor) -> GradientSpace:
        """Before the first task: nothing is used."""
        return cls(like.new_zeros(len(like), 0))

    def unused(self, x: Tensor) -> Tensor:
        """The part of (D, n) that no old task uses: M M' x, or (I - M M') x."""
        inside = self.basis @ (self.basis.T @ x)
        return inside if self.free else x - inside


def energy_threshold(first: float, task: int, tasks: int) -> float:
    """e_t = e_0 + (1 - e_0) t / T, t from 0."""
    return first + (1 - first) * task / tasks


def new_directions(space: GradientSpace, moment: Tensor, rank: int) -> Tensor:
    """A (r, D): the top r left singular vectors of the unused part of C, over sqrt 3."""
    u = torch.linalg.svd(space.unused(moment), full_matrices=False).U
    return space.unused(u[:, :rank]).T / math.sqrt(3)  # where the part has less than r directions, the rest is free too


def root_of(moment: Tensor) -> Tensor:
    """R (D, D) with R R' = C, so that |M'R|^2 is the energy of the tokens themselves in M."""
    values, vectors = torch.linalg.eigh(moment)
    return vectors * values.clamp_min(0).sqrt()


def dual_gpm(space: GradientSpace, inputs: Tensor, threshold: float) -> GradientSpace:
    """Let the used directions take in a new task's, until they hold `threshold` of its energy |inputs|^2.

    M grows by the leading left singular vectors of what it misses, or shrinks by those of what is left where M is what is
    free. With more than D/2 columns of used directions the free ones are kept instead.

    Args:
        inputs: (D, n), columns to hold: a root of C (`root_of`) for the tokens' energy. The authors' code gives C itself,
            whose energy counts tokens to the fourth power.
        threshold: in [0, 1].
    """
    dim, basis, total = len(inputs), space.basis, inputs.square().sum()
    missed = space.unused(inputs)
    u, s, _ = torch.linalg.svd(missed, full_matrices=False)
    held = total - s.square().sum() + torch.cat([s.new_zeros(1), s.square().cumsum(dim=0)])  # with 0, 1, ... more directions
    slack = 4 * torch.finfo(inputs.dtype).eps * total  # of rounding, so that a threshold of 1 can be reached
    more = min(int((held < threshold * total - slack).sum()), len(s))
    taken = u[:, :more]
    if space.free:
        left = basis - taken @ (taken.T @ basis)
        return GradientSpace(torch.linalg.svd(left, full_matrices=False).U[:, : basis.shape[1] - more], free=True)
    basis = torch.linalg.qr(torch.cat([basis, taken], dim=1)).Q[:, :dim]
    if basis.shape[1] <= dim / 2:
        return GradientSpace(basis)
    complement = torch.linalg.svd(basis, full_matrices=True).U[:, basis.shape[1]:]
    return GradientSpace(complement, free=True)


# E2-LoRA -----------------------------------------------------------------------------------------------------------


def rotate_pair(B: Tensor, A: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same product B A with orthonormal columns in B's span, ordered by how much of the layer's output they carry.

    U are the left singular vectors of the centred B A x over a batch's tokens; A <- U'B A, B <- U.

    Args:
        B: (out, r), r <= out; A: (r, D); covariance: (D, D) of x.

    Returns:
        B (out, r), A (r, D), singular values (r,) descending.
    """
    q, upper = torch.linalg.qr(B)
    A = upper @ A
    v, s, _ = torch.linalg.svd(A @ root_of(covariance), full_matrices=True)  # R R' = covariance: the U of all tokens
    return q @ v, v.T @ A, torch.cat([s, s.new_zeros(len(v) - len(s))]) if len(v) > len(s) else s


def ranks_to_keep(singular_values: Sequence[Tensor], width: int, tasks: int) -> list[int]:
    """Of each pair the leading ranks that hold tau of its energy, tau the largest with their sum <= t / (t + 1) of `width`.

    tau falls from 0.99999 by 0.00001; the columns beyond are released to the next task.

    Args:
        singular_values: of each pair (r_p,), descending; width: of the layer's output; tasks: t, those learned.
    """
    allowed = width * tasks // (tasks + 1)
    lengths = [len(s) for s in singular_values]  # on the CPU from here on, in one copy: each step below asks for every pair's rank
    cumulated = torch.cat([s.double().square().cumsum(dim=0) for s in singular_values]).cpu().split(lengths)

    def ranks(step: int) -> list[int]:
        tau = 1 - step * TAU_STEP
        return [int((c < tau * c[-1]).sum()) + 1 if len(c) and c[-1] > 0 else 0 for c in cumulated]

    low, high = 1, round(1 / TAU_STEP)  # the sum falls with tau: halve the range instead of going step by step
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if sum(ranks(middle)) <= allowed else (middle + 1, high)
    kept = ranks(low)
    assert sum(kept) <= allowed, f"{len(kept)} pairs do not fit into {allowed} of {width} ranks"
    return kept
