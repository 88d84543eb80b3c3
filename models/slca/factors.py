"""Factors A of covariances, A' A = S, of many classes at once.

Any such A is exact, so the cheapest is taken. With C (n, d) the centred features and S = C' C / (n - 1):

    n - 1 <= d   C' C = R' R with C = Q R: R (n - 1, d), triangular
    n - 1 > d    S = R' R by Cholesky, (d, d); where S is singular or out of float32's range, R of C = Q R again
    rank wanted  the leading eigenvectors of S, scaled; nothing else needs an eigendecomposition

R is a function of the covariance alone (up to the signs of its rows), so no image's feature can be read from it beyond what
the covariance tells.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from models.slca.batches import ClassBatch, Workspace

# Directions whose variance is below this share of the largest are rounding, not data.
RANK_TOLERANCE = 1e-10
WELL_CONDITIONED = 1e-4  # least over largest diagonal number of a Cholesky factor, from which a QR by it is good to 1e-8
BLOCK = 128  # columns of a Gram matrix per product


def fitted_factors(batch: ClassBatch, rank: int | None) -> tuple[list[Tensor], Tensor]:
    """A of each class and the variance beside it (K, 1): exact and 0, or with a `rank` that some class exceeds its leading directions."""
    _, n, d = batch.centred.shape
    if rank is None or min(n - 1, d) <= rank:
        return exact_factors(batch), batch.means.new_zeros(len(batch.counts), 1).float()
    factors, left_out = leading_directions(batch.centred / (batch.sizes() - 1).clamp_min(1).sqrt(), rank)
    return list(factors), left_out[:, None]


def exact_factors(batch: ClassBatch) -> list[Tensor]:
    """A (r, d) of each class with A' A = S, r = min(n - 1, d), or r = 0 where all images have the same feature."""
    k, n, d = batch.centred.shape
    if n <= 1:
        return [batch.means.new_zeros(0, d).float()] * k
    factors = _by_cholesky(batch) if n - 1 > d else _by_qr(batch)
    norms = torch.linalg.vector_norm(factors, dim=(1, 2)).tolist()  # 0 also where all squares underflow
    ranks = [max(min(count - 1, d), 0) if norm > 0 or factor.any() else 0
             for factor, count, norm in zip(factors, batch.counts, norms, strict=True)]
    return [factor[:rank].float().contiguous() for factor, rank in zip(factors, ranks, strict=True)]


def _by_qr(batch: ClassBatch) -> Tensor:
    """(K, n - 1, d), rows beyond a class's count - 1 are 0.

    The n centred rows sum to 0. The reflection that takes (1, ..., 1) / sqrt(n) to the first axis leaves n - 1 rows with the
    same C' C: c_i + c_1 / (sqrt(n) - 1), i > 1.
    """
    sizes = batch.sizes().clamp_min(2)
    rows = batch.centred[:, 1:].add_(batch.centred[:, :1] / (sizes.sqrt() - 1))
    if batch.ragged:
        rows *= torch.arange(1, rows.shape[1] + 1, device=rows.device)[:, None] < sizes
    rows = rows.div_((sizes - 1).sqrt())
    return triangular_in_float64(rows, batch.counts) if rows.is_cuda else triangular(rows, batch.space)


def _by_cholesky(batch: ClassBatch) -> Tensor:
    """(K, d, d) upper triangular."""
    freedom = batch.sizes() - 1
    lower, info = torch.linalg.cholesky_ex(gram(batch.centred, batch.space).div_(freedom))
    factors = lower.mT.to(batch.centred.dtype)
    failed = (info != 0) | ~lower.diagonal(dim1=-2, dim2=-1).isfinite().all(dim=-1)
    for k in (k for k, again in enumerate(failed.tolist()) if again):
        factors[k] = triangular(batch.centred[k] / freedom[k].sqrt(), batch.space)
    return factors


def gram(rows: Tensor, space: Workspace | None = None) -> Tensor:
    """X' X of X (K, n, d), (K, d, d): the lower triangle, and of the upper one only what lies in the diagonal's blocks.

    With a workspace the result lies in it.

    On CUDA in float64, where products of float32 may be rounded to TF32.
    """
    if rows.is_cuda:
        rows = rows.double()
    k, _, d = rows.shape
    product = (space or Workspace()).take("gram", rows, k, d, d)
    for j in range(0, d, BLOCK):
        torch.bmm(rows[:, :, j:].mT, rows[:, :, j:j + BLOCK], out=product[:, j:, j:j + BLOCK])
    return product


def triangular(rows: Tensor, space: Workspace | None = None) -> Tensor:
    """R (..., min(m, d), d) with R' R = X' X for rows X (..., m, d)."""
    *batch, m, d = rows.shape
    if not m:
        return rows
    packed = (space or Workspace()).take("packed", rows, *batch, d, m).mT  # as LAPACK wants it: column by column
    torch.geqrf(rows, out=(packed, rows.new_empty(*batch, min(m, d))))
    return torch.triu(packed[..., : min(m, d), :], out=rows.new_empty(*batch, min(m, d), d))


def triangular_in_float64(rows: Tensor, counts: list[int]) -> Tensor:
    """`triangular` of many classes at once for a GPU, whose QR takes one matrix after another: X (K, m, d) with m <= d -> (K, m, d).

    Of the first columns X_1 (m, m) = Q R_1 with R_1' R_1 = X_1' X_1, by Cholesky; then R = Q' X = R_1'^-1 X_1' X. That squares the
    condition of X_1, so classes where it is large take `triangular`.

    Args:
        counts: images of each class; its rows from count - 1 on are 0.
    """
    m, exact = rows.shape[1], rows.double()
    beyond = torch.arange(m, device=rows.device) >= torch.tensor(counts, device=rows.device)[:, None] - 1  # (K, m)
    product = (exact[:, :, :m].mT @ exact).masked_fill_(beyond[..., None], 0)  # (K, m, d)
    square = product[:, :, :m].masked_fill(beyond[:, None], 0) + torch.diag_embed(beyond.double())
    lower, info = torch.linalg.cholesky_ex(square)
    diagonals = lower.diagonal(dim1=-2, dim2=-1).masked_fill(beyond, torch.nan)
    least, most = diagonals.nan_to_num(torch.inf).amin(dim=1), diagonals.nan_to_num(0.0).amax(dim=1)
    factors = torch.linalg.solve_triangular(lower, product, upper=False).triu().to(rows.dtype)
    failed = (info != 0) | ~(least > WELL_CONDITIONED * most)
    for k in (k for k, again in enumerate(failed.tolist()) if again):
        factors[k] = triangular(rows[k])
    return factors


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
    directions = F.normalize(vectors @ rows, dim=2) if wide else vectors
    return (directions * lengths[..., None]).float(), left_out.float()
