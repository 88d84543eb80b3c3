"""Factors A of covariances, A' A = S, of many classes at once.

Any such A is exact, so the cheapest is taken. With C (n, d) the centred features and S = C' C / (n - 1):

    n - 1 <= d   C' C = R' R with C = Q R: R (n - 1, d), triangular
    n - 1 > d    S = R' R by Cholesky, (d, d); where S is singular or out of float32's range, R of C = Q R again
    rank wanted  the leading eigenvectors of S, scaled; nothing else needs an eigendecomposition

R is a function of the covariance alone (up to the signs of its rows), so no image's feature can be read from it beyond what
the covariance tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from models.by_class import positions_by_class, require_finite

# Directions whose variance is below this share of the largest are rounding, not data.
RANK_TOLERANCE = 1e-10
# Numbers of features that are worked on at once: what a processor's cache holds, and what keeps a GPU busy.
BATCH_NUMBERS = {"cpu": 2**20, "cuda": 2**26}
LIKE_SIZED = 0.8  # classes of a batch have at least this share of the largest one's images; the rest is padding
SMALL = 2**16  # numbers of one class below which float64 costs nothing to speak of
BLOCK = 128  # columns of a Gram matrix per product


@dataclass(frozen=True)
class ClassBatch:
    """Classes of about as many images: labels and counts (K,), means (K, d) float64, centred (K, n, d) features, float32 or, where
    that is cheap, float64; 0 beyond a class's count.
    """

    labels: list[int]
    counts: list[int]
    means: Tensor
    centred: Tensor

    def sizes(self) -> Tensor:
        """(K, 1, 1) images of each class."""
        return torch.tensor(self.counts, dtype=self.centred.dtype, device=self.centred.device)[:, None, None]


def batch_numbers(like: Tensor) -> int:
    """How many numbers to work on at once on the device of `like`."""
    return BATCH_NUMBERS["cuda" if like.is_cuda else "cpu"]


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
    positions, d = positions_by_class(labels, classes), features.shape[1]
    by_size = sorted(range(len(classes)), key=lambda c: -len(positions[c]))
    while by_size:
        n = len(positions[by_size[0]])
        at_once = max(batch_numbers(features) // max(n * d, 1), 1)
        members = [c for c in by_size[:at_once] if len(positions[c]) >= LIKE_SIZED * n and (len(positions[c]) - 1 > d) == (n - 1 > d)]
        by_size = by_size[len(members):]
        yield _batch(features, [positions[c] for c in members], [classes[c] for c in members])


def _batch(features: Tensor, positions: list[Tensor], labels: list[int]) -> ClassBatch:
    counts = [len(found) for found in positions]
    centred = features.index_select(0, torch.cat(positions))  # a copy, to be centred in place
    if min(counts) < counts[0]:
        centred = torch.nn.utils.rnn.pad_sequence(centred.split(counts), batch_first=True)
    centred = centred.view(len(counts), counts[0], features.shape[1])
    means = centred.sum(dim=1, dtype=torch.float64) / torch.tensor(counts, device=centred.device).clamp_min(1)[:, None]
    require_finite(means, labels)  # a sum in float64 of finite float32 is finite
    centred = centred.double() if centred[0].numel() <= SMALL else centred
    centred -= means.to(centred.dtype)[:, None]
    if min(counts) < counts[0]:
        beyond = torch.arange(counts[0], device=centred.device) >= torch.tensor(counts, device=centred.device)[:, None]
        centred.masked_fill_(beyond[..., None], 0)
    return ClassBatch(labels, counts, means, centred)


def exact_factors(batch: ClassBatch) -> list[Tensor]:
    """A (r, d) of each class with A' A = S, r = min(n - 1, d), or r = 0 where all images have the same feature."""
    k, n, d = batch.centred.shape
    if n <= 1:
        return [batch.means.new_zeros(0, d).float()] * k
    factors = _by_cholesky(batch) if n - 1 > d else _by_qr(batch)
    varies = (torch.linalg.vector_norm(factors, dim=(1, 2)) > 0).tolist()
    ranks = [min(count - 1, d) if some else 0 for count, some in zip(batch.counts, varies, strict=True)]
    return [factor[:max(rank, 0)].float().contiguous() for factor, rank in zip(factors, ranks, strict=True)]


def _by_qr(batch: ClassBatch) -> Tensor:
    """(K, n - 1, d), rows beyond a class's count - 1 are 0.

    The n centred rows sum to 0. The reflection that takes (1, ..., 1) / sqrt(n) to the first axis leaves n - 1 rows with the
    same C' C: c_i + c_1 / (sqrt(n) - 1), i > 1.
    """
    sizes = batch.sizes().clamp_min(2)
    rows = batch.centred[:, 1:] + batch.centred[:, :1] / (sizes.sqrt() - 1)
    if min(batch.counts) < batch.counts[0]:
        rows *= torch.arange(1, rows.shape[1] + 1, device=rows.device)[:, None] < sizes
    return torch.linalg.qr(rows.div_((sizes - 1).sqrt()), mode="r").R


def _by_cholesky(batch: ClassBatch) -> Tensor:
    """(K, d, d) upper triangular."""
    freedom = batch.sizes() - 1
    lower, info = torch.linalg.cholesky_ex(gram(batch.centred).div_(freedom))
    factors = lower.mT.to(batch.centred.dtype)
    failed = (info != 0) | ~lower.diagonal(dim1=-2, dim2=-1).isfinite().all(dim=-1)
    for k in failed.nonzero().flatten().tolist():
        factors[k] = torch.linalg.qr(batch.centred[k] / freedom[k].sqrt(), mode="r").R
    return factors


def gram(rows: Tensor) -> Tensor:
    """X' X of X (K, n, d), (K, d, d): the lower triangle, and of the upper one only what lies in the diagonal's blocks.

    On CUDA in float64, where products of float32 may be rounded to TF32.
    """
    if rows.is_cuda:
        rows = rows.double()
    k, _, d = rows.shape
    product = rows.new_empty(k, d, d)
    for j in range(0, d, BLOCK):
        torch.bmm(rows[:, :, j:].mT, rows[:, :, j:j + BLOCK], out=product[:, j:, j:j + BLOCK])
    return product


def triangular(rows: Tensor) -> Tensor:
    """R (min(m, d), d) with R' R = X' X for rows X (m, d)."""
    return torch.linalg.qr(rows, mode="r").R if len(rows) else rows


def leading_directions(rows: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """What `rank` directions tell of S = X' X, X (K, m, d) with rank < min(m, d).

    Returns:
        Scaled eigenvectors of the largest variances (K, rank, d), and the mean variance of the other directions that X spans (K,).
        That one is to act along all directions, so it is taken off the kept ones.
    """
    rows = rows.double()
    wide = rows.shape[1] < rows.shape[2]
    values, vectors = torch.linalg.eigh(rows @ rows.mT if wide else rows.mT @ rows)  # of the smaller square, ascending
    others = values[:, :-rank] > RANK_TOLERANCE * values[:, -1:]
    left_out = (values[:, :-rank] * others).sum(dim=1) / others.sum(dim=1).clamp_min(1)
    lengths = (values[:, -rank:] - left_out[:, None]).clamp_min(0).sqrt()  # (K, rank)
    vectors = vectors[:, :, -rank:].mT
    directions = torch.nn.functional.normalize(vectors @ rows, dim=2) if wide else vectors
    return (directions * lengths[..., None]).float(), left_out.float()
