"""Read a classifier straight from the classes' Gaussians: regularised discriminant analysis in closed form.

With mean mu_c, covariance S_c (no ridge) and S the mean of the S_c over the K classes seen:

    Q_c = (1 - g) [(1 - a) S_c + a S] + m_c I,      m_c = g tr((1 - a) S_c + a S) / D + ridge
    score_c(x) = -1/2 (x - mu_c)' Q_c^-1 (x - mu_c) - 1/2 log det Q_c           (equal priors)

a = 1 is LDA, a = 0 QDA; the nearest class mean has Q_c = I. Ideas: regularised discriminant analysis (Friedman 1989),
FeCAM (arXiv 2309.14062), LR-RGDA (arXiv 2602.00144).

Covariances are factor + noise as models/slca/gaussians.py keeps them; a class without any image never wins.

One eigendecomposition S = U diag(s) U' serves all classes: in the basis U

    Q_c = diag(b_c) + w F'F,     b_c = (1 - g) a s + m_c,   w = (1 - g)(1 - a),   F (r, D) the rotated factor of S_c.

`dense_form` (r >= D) keeps L^-1 with Q_c = L L'. `woodbury_form` (r < D) keeps r rows G instead, so that no class needs a
D x D matrix: x' Q_c^-1 x = x' diag(1/b_c) x - |G x|^2. Scoring is then one product with the rows of all classes. Where
rounding leaves a matrix no Cholesky factor, the R of a QR decomposition of its root takes its place: that always exists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from models.slca.batches import equal_runs, numbers_at_once
from models.slca.factors import gram
from models.slca.gaussian import Gaussian

ROWS_AT_ONCE = 2**15  # rows of all classes' matrices applied in one product; bounds memory at (images, this)
SUMMED_NUMBERS = 2**24  # numbers of factors that one product sums
PROBED = 16  # classes whose means `tells_apart` scores


class GaussianDiscriminant(nn.Module):
    """Scores of all classes, features (N, D) -> (N, K); the largest wins. A module: it can be moved and exported.

    Args:
        means: (K, D); basis: (D, D) orthogonal U, or None for the identity.
        precisions: (K, D), 1/b_c in the basis, 0 for classes in dense form.
        rows: one (r_c, D) per class in the basis; signs: (K,) what r_c's |G x|^2 counts, 1 dense and -1 Woodbury.
        log_dets: (K,) log det Q_c.
    """

    def __init__(self, means: Tensor, basis: Tensor | None, precisions: Tensor, rows: Sequence[Tensor],
                 signs: Tensor, log_dets: Tensor) -> None:
        super().__init__()
        centre = means.mean(dim=0)
        turned = means - centre if basis is None else (means - centre) @ basis  # (K, D)
        self.register_buffer("centre", centre)
        self.register_buffer("basis", basis)
        self.register_buffer("precisions", precisions.double())  # float64: differences of large squares follow
        self.register_buffer("turned", turned.double())
        self.register_buffer("rows", torch.cat(list(rows)))  # (R, D)
        self.register_buffer("offsets", torch.cat([r @ mean for r, mean in zip(rows, turned, strict=True)]))  # (R,) G mu_c
        owner = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(r) for r in rows]))
        self.register_buffer("owner", owner.to(means.device))  # (R,) class of a row
        self.register_buffer("signs", signs.double())
        self.register_buffer("log_dets", log_dets.double())

    def forward(self, features: Tensor) -> Tensor:
        x = features - self.centre
        if self.basis is not None:
            x = x @ self.basis
        squares = x.new_zeros(x.shape[0], len(self.turned))  # (N, K) sum of |G (x - mu)|^2
        parts = (tensor.split(ROWS_AT_ONCE) for tensor in (self.rows, self.offsets, self.owner))
        for rows, offsets, owner in zip(*parts, strict=True):
            squares = squares.index_add(1, owner, torch.addmm(-offsets, x, rows.T).square())
        x = x.to(self.precisions.dtype)
        scaled = self.precisions * self.turned  # (K, D)
        distances = x.square() @ self.precisions.T - 2 * x @ scaled.T + (scaled * self.turned).sum(dim=1)  # (N, K)
        return (-0.5 * (distances + self.signs * squares + self.log_dets)).to(features.dtype)

    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers())


def discriminant(gaussians: Sequence[Gaussian], *, a: float, g: float, ridge: float, pooled: Tensor | None = None,
                 form: str = "auto") -> GaussianDiscriminant:
    """Regularised Gaussian discriminant of K classes.

    Args:
        a: share of the mean covariance, 0 (QDA) to 1 (LDA).
        g: share of the identity scaled to the same trace, 0 to 1.
        ridge: added to the diagonal, above 0.
        pooled: (D, D), the covariance of every class where they share one; `a` then plays no part.
        form: "auto" (Woodbury where r < D), or "dense" or "woodbury" for all classes.
    """
    means = torch.stack([x.mean for x in gaussians])  # (K, D)
    dim, ranks = means.shape[1], [len(x.factor) for x in gaussians]
    present = _present(gaussians)
    noise = torch.stack([x.noise for x in gaussians]).double()  # (K, 1), without factors also (K, D)
    if pooled is not None:
        a = 1.0
        values, basis = torch.linalg.eigh(pooled.double())
    elif any(ranks):
        values, basis = torch.linalg.eigh(_sum_of_covariances(gaussians) / present.sum())  # S = U diag(s) U'
        values = values + noise[present].mean(dim=0)
    else:  # variances alone: the axes are the basis
        values, basis = noise[present].mean(dim=0).expand(dim), None
    values, basis = values.clamp_min(0), basis if basis is None else basis.to(means.dtype)
    traces = torch.stack([x.factor.float().norm() for x in gaussians]).double().square()  # (K,)
    traces = traces + noise.expand(-1, dim).sum(dim=1)  # tr S_c
    floors = g * ((1 - a) * traces + a * values.sum()) / dim + ridge  # (K,) m_c
    diagonals = (1 - g) * ((1 - a) * noise + a * values) + floors[:, None]  # (K, D) b_c
    precisions, log_dets = 1 / diagonals, diagonals.log().sum(dim=1)
    weight = (1 - g) * (1 - a)
    rows, signs = [means.new_zeros(0, dim)] * len(means), torch.zeros(len(means), device=means.device)
    if weight > 0 and any(ranks):  # else nothing of the classes' own directions is left (LDA), or there is none
        for part, rank in equal_runs(ranks, lambda rank: numbers_at_once(means) // (dim * max(rank, 1))):
            factors = torch.stack([x.factor.float() for x in gaussians[part]]) @ basis  # (k, r, D)
            if form == "woodbury" or (form == "auto" and rank < dim):
                rows[part], corrections = woodbury_form(factors, diagonals[part], weight)
                log_dets[part] += corrections
                signs[part] = -1
            else:
                rows[part], log_dets[part] = dense_form(factors, diagonals[part], weight)
                precisions[part], signs[part] = 0, 1
    log_dets[~present] = torch.inf
    return GaussianDiscriminant(means, basis, precisions, rows, signs, log_dets)


def _sum_of_covariances(gaussians: Sequence[Gaussian]) -> Tensor:
    """(D, D) float64, the sum of A'A over the classes; its lower triangle counts."""
    dim = len(gaussians[0].mean)
    total = torch.zeros(dim, dim, dtype=torch.float64, device=gaussians[0].mean.device)
    at_once = max(SUMMED_NUMBERS // (dim * max(len(x.factor) for x in gaussians)), 1)
    for first in range(0, len(gaussians), at_once):
        total += gram(torch.cat([x.factor.float() for x in gaussians[first:first + at_once]])[None])[0]
    return total


def dense_form(factors: Tensor, diagonals: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """Q = diag(b) + w F'F = L L': (L^-1 (k, D, D), log det Q (k,)). Args: factors F (k, r, D), diagonals b (k, D), weight w."""
    q = (weight * gram(factors)).double()
    q.diagonal(dim1=1, dim2=2).add_(diagonals)
    lower = _cholesky(q, lambda c: torch.cat([weight**0.5 * factors[c].double(), diagonals[c].sqrt().diag()]))
    identity = torch.eye(q.shape[1], dtype=q.dtype, device=q.device).expand_as(q)
    inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
    return inverse.to(factors.dtype), _log_det(lower)


def woodbury_form(factors: Tensor, diagonals: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """G (k, r, D) with Q^-1 = diag(1/b) - G'G, and log det Q - log det diag(b), for Q = diag(b) + w F'F.

    With P = F sqrt(w / b) and M = I + P P' = L L' (r, r): G = L^-1 P / sqrt(b), log det M is the correction.
    """
    inverse_roots = diagonals.rsqrt().to(factors.dtype)[:, None]  # (k, 1, D)
    scaled = factors * (weight**0.5 * inverse_roots)  # P (k, r, D)
    m = gram(scaled.mT)
    m.diagonal(dim1=1, dim2=2).add_(1)
    identity = torch.eye(m.shape[1], dtype=factors.dtype, device=m.device)
    lower = _cholesky(m, lambda c: torch.cat([scaled[c].T.to(m.dtype), identity.to(m.dtype)]))
    correction = _log_det(lower)
    # G' L' = P' / sqrt(b): from the right, where BLAS is twice as fast
    rows = torch.linalg.solve_triangular(lower.mT.to(factors.dtype), (scaled * inverse_roots).mT, upper=True, left=False).mT
    return rows, correction


def _cholesky(matrices: Tensor, root: Callable[[int], Tensor]) -> Tensor:
    """Lower L (k, n, n) with L L' = each matrix; `root(c)` is X with X' X = matrix c, for those that rounding made indefinite."""
    lower, info = torch.linalg.cholesky_ex(matrices)
    for c in (c for c, failed in enumerate(info.tolist()) if failed):
        upper = torch.linalg.qr(root(c), mode="r").R
        lower[c] = (upper * upper.diagonal().sign()[:, None]).T
    return lower


def _log_det(lower: Tensor) -> Tensor:
    """log det of L L', (k,) float64."""
    return 2 * lower.diagonal(dim1=1, dim2=2).double().log().sum(dim=1)


def nearest_mean(gaussians: Sequence[Gaussian]) -> GaussianDiscriminant:
    """The nearest class mean: -1/2 |x - mu_c|^2."""
    means = torch.stack([x.mean for x in gaussians])
    log_dets = torch.zeros(len(means), device=means.device).masked_fill(~_present(gaussians), torch.inf)
    nothing = [means.new_zeros(0, means.shape[1])] * len(means)
    return GaussianDiscriminant(means, None, torch.ones_like(means), nothing, torch.zeros_like(log_dets), log_dets)


def tells_apart(read_out: GaussianDiscriminant, gaussians: Sequence[Gaussian]) -> bool:
    """Whether the classes' own means get different scores: where variances or the ridge are so large that float32 has no digit
    left for what differs, every class scores the same, and the first one would always win.
    """
    present = [c for c, x in enumerate(gaussians) if x.count][:PROBED]
    if len(present) < 2:
        return True
    scores = read_out(torch.stack([gaussians[c].mean for c in present]))[:, present]
    return bool((scores != scores[:, :1]).any())


def _present(gaussians: Sequence[Gaussian]) -> Tensor:
    """(K,) whether a class had any image."""
    return torch.tensor([x.count > 0 for x in gaussians], device=gaussians[0].mean.device)
