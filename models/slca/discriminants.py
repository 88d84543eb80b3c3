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
D x D matrix: x' Q_c^-1 x = x' diag(1/b_c) x - |G x|^2. Scoring is then one product with the rows of all classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.slca.gaussians import Gaussian

ROWS_AT_ONCE = 2**15  # rows of all classes' matrices applied in one product; bounds memory at (images, this)
BISECTIONS = 60
TEMPERATURES = (0.1, 1e4)  # where `fit_temperature` looks


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
        ranks = torch.tensor([len(r) for r in rows], device=means.device)
        self.register_buffer("owner", torch.arange(len(rows), device=means.device).repeat_interleave(ranks))  # (R,) class of a row
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
    factors = torch.cat([x.factor.float() for x in gaussians])  # (R, D)
    noise = torch.stack([x.noise for x in gaussians]).double()  # (K, 1), without factors also (K, D)
    if pooled is not None:
        a = 1.0
        values, basis = torch.linalg.eigh(pooled.double())
    elif len(factors):
        values, basis = torch.linalg.eigh((factors.T @ factors).double() / present.sum())  # S = U diag(s) U'
        values = values + noise[present].mean(dim=0)
    else:  # variances alone: the axes are the basis
        values, basis = noise[present].mean(dim=0).expand(dim), None
    values, basis = values.clamp_min(0), basis if basis is None else basis.to(means.dtype)
    traces = torch.stack([f.square().sum() for f in factors.split(ranks)]) + noise.expand(-1, dim).sum(dim=1)  # (K,) tr S_c
    floors = g * ((1 - a) * traces + a * values.sum()) / dim + ridge  # (K,) m_c
    diagonals = (1 - g) * ((1 - a) * noise + a * values) + floors[:, None]  # (K, D) b_c
    precisions, log_dets = 1 / diagonals, diagonals.log().sum(dim=1)
    weight = (1 - g) * (1 - a)
    rows, signs = [means.new_zeros(0, dim)] * len(means), torch.zeros(len(means), device=means.device)
    if weight > 0 and len(factors):  # else nothing of the classes' own directions is left (LDA), or there is none
        for c, factor in enumerate((factors @ basis).split(ranks)):
            if form == "woodbury" or (form == "auto" and len(factor) < dim):
                rows[c], correction = woodbury_form(factor, diagonals[c], weight)
                log_dets[c] += correction
                signs[c] = -1
            else:
                rows[c], log_dets[c] = dense_form(factor, diagonals[c], weight)
                precisions[c], signs[c] = 0, 1
    log_dets[~present] = torch.inf
    return GaussianDiscriminant(means, basis, precisions, rows, signs, log_dets)


def dense_form(factor: Tensor, diagonal: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """Q = diag(b) + w F'F = L L': (L^-1 (D, D), log det Q). Args: factor F (r, D), diagonal b (D,), weight w."""
    q = (weight * factor.T @ factor).double() + diagonal.diag()
    lower = torch.linalg.cholesky(q)
    inverse = torch.linalg.solve_triangular(lower, torch.eye(len(q), dtype=q.dtype, device=q.device), upper=False)
    return inverse.to(factor.dtype), 2 * lower.diagonal().log().sum()


def woodbury_form(factor: Tensor, diagonal: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """G (r, D) with Q^-1 = diag(1/b) - G'G, and log det Q - log det diag(b), for Q = diag(b) + w F'F.

    With P = F sqrt(w / b) and M = I + P P' = L L' (r, r): G = L^-1 P / sqrt(b), log det M is the correction.
    """
    scaled = factor * (weight / diagonal).sqrt().to(factor.dtype)  # P (r, D)
    m = scaled @ scaled.T
    m.diagonal().add_(1)
    lower = torch.linalg.cholesky(m)
    rows = torch.linalg.solve_triangular(lower, scaled * diagonal.rsqrt().to(factor.dtype), upper=False)
    return rows, 2 * lower.diagonal().to(diagonal.dtype).log().sum()


def nearest_mean(gaussians: Sequence[Gaussian]) -> GaussianDiscriminant:
    """The nearest class mean: -1/2 |x - mu_c|^2."""
    means = torch.stack([x.mean for x in gaussians])
    log_dets = torch.zeros(len(means), device=means.device).masked_fill(~_present(gaussians), torch.inf)
    nothing = [means.new_zeros(0, means.shape[1])] * len(means)
    return GaussianDiscriminant(means, None, torch.ones_like(means), nothing, torch.zeros_like(log_dets), log_dets)


def fit_temperature(scores: Tensor, labels: Tensor) -> float:
    """T that minimises the cross-entropy of softmax(scores / T); scores (N, K), labels (N,).

    The loss is convex in 1/T: bisection of its derivative, E[sum_k p_k s_k - s_y]. Images that are all right by far leave
    no minimum; then the smallest temperature looked at is returned.
    """
    scores = scores.double().nan_to_num(neginf=-1e30)  # a class without images scores -inf
    own = scores.gather(1, labels[:, None]).squeeze(1)  # (N,)
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    for _ in range(BISECTIONS):
        middle = (low * high) ** 0.5
        expected = ((scores * middle).softmax(dim=1) * scores).sum(dim=1)
        low, high = (low, middle) if (expected - own).mean() > 0 else (middle, high)
    return (low * high) ** -0.5


def _present(gaussians: Sequence[Gaussian]) -> Tensor:
    """(K,) whether a class had any image."""
    return torch.tensor([x.count > 0 for x in gaussians], device=gaussians[0].mean.device)
