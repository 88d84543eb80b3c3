"""Per-class Gaussians of the features, N(mu_c, S_c + ridge I), held in factor form.

With n features of dimension d the covariance has rank r <= min(n - 1, d), so S_c = A' A with A of shape (r, d) is
exact and no d x d matrix is kept when n < d. SLCA section 3.3; METHOD "Statistics": unbiased covariance + 1e-4 I.

Cheaper covariances, by name (`ca_cov`):
    full     exact, (r, d) numbers per class
    lowrank  the leading directions; beside them noise of equal variance in every direction, the mean variance of the
             directions left out (probabilistic PCA, Tipping & Bishop 1999). The mean is over directions that the images
             span, as in scikit-learn's PCA: where there are fewer images than dimensions nothing is known of the
             others, and counting their 0 would make features too sure
    diag     one variance per dimension
    shared   one covariance of all classes, pooled over the images within their classes; it grows more precise with
             every task, and is the only one that is not a fact of its class alone
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

# Directions whose variance is below this share of the largest are rounding, not data.
RANK_TOLERANCE = 1e-10
FLOAT_BYTES = 4
DEFAULT_RANK = 64  # of lowrank, where the config names none


@dataclass(frozen=True)
class Gaussian:
    """One class: S = factor' factor + diag(noise), fitted on `count` images.

    Attributes:
        mean: (d,).
        factor: (r, d), rows orthogonal; float32 or, to halve it, float16.
        noise: variance beside the factor, (d,) one per dimension or (1,) the same for all; 0 for an exact factor.
    """

    mean: Tensor
    factor: Tensor
    count: int
    noise: Tensor = field(default_factory=lambda: torch.zeros(1))

    @classmethod
    def fit(cls, features: Tensor, rank: int | None = None) -> Gaussian:
        """Mean and factor of the unbiased covariance; exact, or with the `rank` (1 or more) leading directions and noise.

        Args:
            features: (n, d) float32. One image gives an empty factor (its covariance is 0); no image (DomainNet has classes
                that a domain lacks) gives a Gaussian of count 0, which is never sampled.

        The rows of the factor are scaled eigenvectors of the covariance, so no image's feature is stored. The
        smaller of the n x n Gram matrix and the d x d covariance is decomposed, in float64.
        """
        n, d = features.shape
        centred = features.double()
        mean = centred.sum(dim=0) / max(n, 1)
        centred = centred - mean
        if n <= 1:
            return cls(mean.float(), features.new_zeros(0, d), n, features.new_zeros(1))
        wide = n < d
        gram = centred @ centred.T if wide else centred.T @ centred  # (n, n) or (d, d)
        values, vectors = torch.linalg.eigh(gram / (n - 1))  # ascending
        keep = values > RANK_TOLERANCE * values[-1].clamp_min(torch.finfo(torch.float64).tiny)
        left_out = 0.0
        if rank is not None and int(keep.sum()) > rank:
            spanned = values[keep]  # ascending
            left_out = spanned[:-rank].mean()
            keep[: len(values) - rank] = False
        vectors, values = vectors[:, keep], values[keep]
        # rows of length sqrt(lambda_i); of the Gram matrix they are u_i' F / sqrt(n - 1)
        factor = vectors.T @ centred / (n - 1) ** 0.5 if wide else (vectors * values.sqrt()).T
        # The noise also acts along the kept directions; what it gives there is taken off them.
        factor = factor * ((values - left_out).clamp_min(0) / values).sqrt()[:, None]
        return cls(mean.float(), factor.float().contiguous(), n, features.new_full((1,), float(left_out)))

    @classmethod
    def fit_diagonal(cls, features: Tensor) -> Gaussian:
        """Mean and one unbiased variance per dimension; features (n, d)."""
        n, d = features.shape
        mean = features.double().sum(dim=0) / max(n, 1)
        variances = (features.double() - mean).square().sum(dim=0) / max(n - 1, 1)
        return cls(mean.float(), features.new_zeros(0, d), n, variances.float())

    def moved(self, w: Tensor) -> Gaussian:
        """The Gaussian of x W where x is this one's, W (d, d) in float64 where the device has it."""
        squares = w.square()
        noise = self.noise.to(w) @ squares if len(self.noise) > 1 else self.noise.to(w) * squares.sum() / len(w)
        factor = self.factor.to(w) @ w
        if len(factor) == len(w):  # `draw_into` needs orthogonal rows where every direction is there: again scaled eigenvectors
            values, vectors = torch.linalg.eigh(factor.T @ factor)
            factor = (vectors * values.clamp_min(0).sqrt()).T
        return Gaussian((self.mean.to(w) @ w).float(), factor.float().contiguous(), self.count, noise.float())

    def covariance(self, ridge: float = 0.0) -> Tensor:
        """S + ridge I, (d, d); for tests and plots, never needed to train."""
        factor = self.factor.float()
        return factor.T @ factor + torch.diag((self.noise + ridge).expand(len(self.mean)))

    def sample(self, count: int, ridge: float, generator: torch.Generator, mean: Tensor | None = None) -> Tensor:
        """`count` draws around `mean` (default the class's own), (count, d)."""
        drawn = self.mean.new_empty(count, len(self.mean))
        self.draw_into(drawn, self.mean if mean is None else mean, ridge, generator, self.mean.new_empty(count * len(self.mean)))
        return drawn

    def draw_into(self, out: Tensor, mean: Tensor, ridge: float, generator: torch.Generator, scratch: Tensor) -> None:
        """Fill `out` (count, d) with mean + e A + sqrt(noise + ridge) e', e and e' standard normal: one product per class.

        Args:
            mean: (d,) to draw around (SLCA shrinks old means).
            scratch: (count * d,) or more numbers that may be overwritten; random numbers cost more in fresh memory.
        """
        (count, d), rank = out.shape, len(self.factor)
        if rank == d and self.noise.numel() == 1:  # every direction is there: the noise only lengthens it, d normals do
            factor = self.factor.float()
            lengths = factor.square().sum(dim=1).clamp_min(torch.finfo(torch.float32).tiny)  # a moved factor may have a row of 0
            spread = (1 + (self.noise + ridge) / lengths).sqrt()
            torch.addmm(mean, _normals(scratch, count, d, generator), factor * spread[:, None], out=out)
            return
        out.normal_(generator=generator).mul_((self.noise + ridge).sqrt()).add_(mean)
        if rank:
            out.addmm_(_normals(scratch, count, rank, generator), self.factor.float())


class ClassGaussians:
    """The Gaussians of all classes seen so far, in learning order. They stay as they were when a class was learned.

    Args:
        ridge: added to every variance.
        cov: full, lowrank, diag or shared (see the module).
        rank: leading directions kept of each covariance.
        dtype: in which factors are stored; float16 halves them. A class whose factor would not fit stays float32.
    """

    def __init__(self, ridge: float = 1e-4, *, cov: str = "full", rank: int | None = None, dtype: torch.dtype = torch.float32) -> None:
        self.ridge = ridge
        self.cov = cov
        self.rank = DEFAULT_RANK if cov == "lowrank" and rank is None else rank
        self.dtype = dtype
        self.classes: list[Gaussian] = []  # class c of the stream at position c; grows by C_t per task
        self.pooled: Tensor | None = None  # (d, d) sum over classes of (n_c - 1) S_c; shared only
        self._buffers: dict[str, Tensor] = {}  # reused from draw to draw; `free_buffers` gives them back

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, label: int) -> Gaussian:
        return self.classes[label]

    def fit(self, features: Tensor, labels: Tensor, classes: range) -> list[int]:
        """Append the Gaussians of `classes` (the next ones in order).

        Args:
            features: (N, D) float32; labels: (N,) int64.

        Returns:
            Classes with no more images than dimensions: their covariance lacks directions, which the ridge fills.
        """
        assert classes.start == len(self), f"classes {classes} fitted after {len(self)} classes"
        self.free_buffers()
        for label in classes:
            self.classes.append(self._fit_one(features[labels == label]))
        if self.cov == "shared":
            return list(classes) if self._degrees_of_freedom() < features.shape[1] else []
        return [label for label in classes if self[label].count <= features.shape[1]]

    def transport(self, operator: Tensor) -> None:
        """Move every Gaussian by a linear map of the features, W (D, D): mu <- mu W, S <- W' S W on the factor.

        Noise beside the factor stays in its form: a variance per dimension takes the moved one's diagonal, an equal
        variance its mean.
        """
        self.free_buffers()
        self.classes = [g.moved(operator) for g in self.classes]
        self.classes = [Gaussian(g.mean, self._stored(g.factor), g.count, g.noise) for g in self.classes]
        if self.pooled is not None:
            w = operator.to(self.pooled.dtype)
            self.pooled = w.T @ self.pooled @ w

    def pooled_covariance(self) -> Tensor | None:
        """(d, d), the one covariance of all classes without the ridge; None unless `cov` is shared."""
        return None if self.pooled is None else self.pooled / max(self._degrees_of_freedom(), 1)

    def means(self) -> Tensor:
        """(K, D)."""
        return torch.stack([g.mean for g in self.classes])

    def sample(self, means: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`count` features of every class that had images, around `means` (K, D): features (N, D) and labels (N,).

        The features lie in a buffer that the next call overwrites.
        """
        drawn = [label for label, gaussian in enumerate(self.classes) if gaussian.count]
        if len(drawn) < len(means):
            means = means[drawn]
        (classes, d), rows = means.shape, len(means) * count
        features = self._buffer("features", rows * d, means).view(rows, d)
        if self.cov == "shared":
            normals = self._buffer("shared normals", rows * d, means).view(rows, d).normal_(generator=generator)
            torch.mm(normals, self._shared_root(), out=features)
            features.view(classes, count, d).add_(means[:, None])
        else:
            scratch = self._buffer("normals", count * max((len(g.factor) for g in self.classes), default=0), means)
            for label, mean, out in zip(drawn, means, features.split(count), strict=True):
                self[label].draw_into(out, mean, self.ridge, generator, scratch)
        return features, torch.tensor(drawn, device=features.device).repeat_interleave(count)

    def free_buffers(self) -> None:
        """Give back the memory that drawing reused."""
        self._buffers = {}

    def nbytes(self) -> int:
        """Bytes of all that is kept between tasks."""
        own = sum(g.mean.nbytes + g.factor.nbytes + (g.noise.nbytes if self.cov in ("lowrank", "diag") else 0) for g in self.classes)
        return own + (0 if self.pooled is None else self.pooled.nbytes)

    def planned_bytes(self, classes: int, images: int, d: int) -> int:
        """`nbytes` of `classes` classes of `images` images each, before there are any: a mean, a factor and noise per class."""
        rank = 0 if self.cov in ("diag", "shared") else min(max(images - 1, 0), d, self.rank or d)
        noise = {"diag": d, "lowrank": 1}.get(self.cov, 0)
        each = FLOAT_BYTES * (d + noise) + self.dtype.itemsize * rank * d
        return classes * each + (FLOAT_BYTES * d * d if self.cov == "shared" else 0)

    def state_dict(self) -> dict[str, Tensor]:
        """Flat tensors for a checkpoint: all factors stacked by rows, with each class's rank and count."""
        if not self.classes:
            return {}
        state = {"means": self.means(), "factors": torch.cat([g.factor for g in self.classes]),
                 "ranks": torch.tensor([len(g.factor) for g in self.classes]),
                 "counts": torch.tensor([g.count for g in self.classes]), "noise": torch.stack([g.noise for g in self.classes])}
        return state if self.pooled is None else {**state, "pooled": self.pooled}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.free_buffers()
        self.pooled = state.get("pooled")
        if not state:
            self.classes = []
            return
        factors = state["factors"].split(state["ranks"].tolist())
        self.classes = [Gaussian(mean, self._stored(factor), count, noise) for mean, factor, count, noise
                        in zip(state["means"], factors, state["counts"].tolist(), state["noise"], strict=True)]

    # Private -------------------------------------------------------------------------------------------------

    def _fit_one(self, features: Tensor) -> Gaussian:
        if self.cov == "diag":
            return Gaussian.fit_diagonal(features)
        if self.cov == "shared":
            mean = features.double().sum(dim=0) / max(len(features), 1)
            centred = features.double() - mean
            scatter = (centred.T @ centred).float()
            self.pooled = scatter if self.pooled is None else self.pooled + scatter
            return Gaussian(mean.float(), features.new_zeros(0, features.shape[1]), len(features), features.new_zeros(1))
        found = Gaussian.fit(features, self.rank)
        return Gaussian(found.mean, self._stored(found.factor), found.count, found.noise)

    def _stored(self, factor: Tensor) -> Tensor:
        too_large = factor.numel() > 0 and factor.abs().max() > torch.finfo(self.dtype).max
        return factor.float() if too_large else factor.to(self.dtype)

    def _degrees_of_freedom(self) -> int:
        return sum(max(g.count - 1, 0) for g in self.classes)

    def _shared_root(self) -> Tensor:
        """(d, d) R with R' R = the pooled covariance + ridge I; worked out once for all draws of an alignment."""
        if "root" not in self._buffers:
            values, vectors = torch.linalg.eigh(self.pooled_covariance().double())
            self._buffers["root"] = ((values.clamp_min(0) + self.ridge).sqrt()[:, None] * vectors.T).float()
        return self._buffers["root"]

    def _buffer(self, name: str, size: int, like: Tensor) -> Tensor:
        """`size` numbers to overwrite, float32 on the device of `like`."""
        found = self._buffers.get(name)
        if found is None or len(found) < size or found.device != like.device:
            found = self._buffers[name] = torch.empty(size, dtype=torch.float32, device=like.device)
        return found[:size]


def _normals(scratch: Tensor, rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return scratch[: rows * columns].view(rows, columns).normal_(generator=generator)
