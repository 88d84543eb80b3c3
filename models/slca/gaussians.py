"""Per-class Gaussians of the features, N(mu_c, S_c + ridge I), held in factor form.

With n features of dimension d the covariance has rank r <= min(n - 1, d), so S_c = A' A with A of shape (r, d) is
exact and no d x d matrix is kept when n < d. SLCA section 3.3; METHOD "Statistics": unbiased covariance + 1e-4 I.
How A is found: models/slca/factors.py.

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

from models.slca.factors import ClassBatch, batch_numbers, class_batches, equal_runs, exact_factors, leading_directions, triangular
from utils.errors import UserError

FLOAT_BYTES = 4
DEFAULT_RANK = 64  # of lowrank, where the config names none


@dataclass(frozen=True)
class Gaussian:
    """One class: S = factor' factor + diag(noise), fitted on `count` images.

    Attributes:
        mean: (d,).
        factor: (r, d); float32 or, to halve it, float16.
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

        Raises:
            UserError: a feature is not finite.
        """
        labels = torch.zeros(len(features), dtype=torch.long, device=features.device)
        return next(_fit_batch(batch, rank)[0] for batch in class_batches(features, labels, range(1)))

    def moved(self, w: Tensor) -> Gaussian:
        """The Gaussian of x W where x is this one's, W (d, d) in float64 where the device has it."""
        squares = w.square()
        noise = self.noise.to(w) @ squares if len(self.noise) > 1 else self.noise.to(w) * squares.sum() / len(w)
        factor = self.factor.to(w) @ w
        return Gaussian((self.mean.to(w) @ w).float(), factor.float(), self.count, noise.float())

    def merged(self, new: Gaussian) -> Gaussian:
        """The Gaussian of both ones' images, as if they had been fitted together; `new` has an exact factor."""
        count, rows = self.count + new.count, scatter_rows(self, new)
        mean = (self.count * self.mean.double() + new.count * new.mean.double()) / max(count, 1)
        freedom = max(count - 1, 1)
        noise = self.noise * (max(self.count - 1, 0) / freedom)
        if len(self.noise) > 1:  # variances alone
            return Gaussian(mean.float(), self.factor, count, noise + rows.square().sum(dim=0) / freedom)
        return Gaussian(mean.float(), triangular(rows / freedom**0.5), count, noise)

    def covariance(self, ridge: float = 0.0) -> Tensor:
        """S + ridge I, (d, d); for tests and plots, never needed to train."""
        factor = self.factor.float()
        return factor.T @ factor + torch.diag((self.noise + ridge).expand(len(self.mean)))

    def sample(self, count: int, ridge: float, generator: torch.Generator, mean: Tensor | None = None) -> Tensor:
        """`count` draws around `mean` (default the class's own), (count, d)."""
        drawn = self.mean.new_empty(1, count, len(self.mean))
        draw_into(drawn, [self], (self.mean if mean is None else mean)[None], ridge, generator,
                  self.mean.new_empty(count * len(self.factor)))
        return drawn[0]


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

        Raises:
            UserError: a feature is not finite.
        """
        assert classes.start == len(self), f"classes {classes} fitted after {len(self)} classes"
        self.free_buffers()
        found: dict[int, Gaussian] = {}
        for batch in class_batches(features, labels, classes):
            found.update(zip(batch.labels, self._fit_batch(batch), strict=True))
        self.classes += [found[label] for label in classes]
        if self.cov == "shared":
            return list(classes) if self._degrees_of_freedom() < features.shape[1] else []
        return [label for label in classes if self[label].count <= features.shape[1]]

    def update(self, label: int, features: Tensor) -> None:
        """Take more images (m, D) of a class into its Gaussian: as if all had been fitted together, without the old ones.

        Exact but for lowrank, whose old images are known by their leading directions alone. After drift the old part is what
        `transport` made of it.
        """
        self.free_buffers()
        old, new = self[label], Gaussian.fit(features)
        merged = old.merged(new)
        if self.cov == "shared":
            rows = scatter_rows(old, new)
            self.pooled = rows.T @ rows + (0 if self.pooled is None else self.pooled)
            merged = Gaussian(merged.mean, old.factor, merged.count, old.noise)
        elif self.cov == "lowrank" and len(merged.factor) > self.rank:
            factor, left_out = leading_directions(merged.factor[None], self.rank)
            merged = Gaussian(merged.mean, factor[0], merged.count, merged.noise + left_out)
        self.classes[label] = self._stored([merged])[0]

    def remove(self, label: int) -> None:
        """Forget a class: nothing of it is left, it is never drawn and no read-out chooses it; the others keep their labels.

        Raises:
            UserError: all classes share one covariance, out of which no class can be taken.
        """
        if self.cov == "shared":
            raise UserError(f"ca_cov: class {label} cannot be forgotten with 'shared', since the one covariance of all classes was "
                            "made of its images too; allowed: full, lowrank, diag. Train again with one of them, or without the class.")
        self.free_buffers()
        old = self[label]
        self.classes[label] = Gaussian(torch.zeros_like(old.mean), old.factor.new_zeros(0, len(old.mean)), 0, torch.zeros_like(old.noise))

    def transport(self, operator: Tensor) -> None:
        """Move every Gaussian by a linear map of the features, W (D, D): mu <- mu W, S <- W' S W on the factor.

        Noise beside the factor stays in its form: a variance per dimension takes the moved one's diagonal, an equal
        variance its mean.
        """
        self.free_buffers()
        self.classes = self._stored([g.moved(operator) for g in self.classes])
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

        The features lie in a buffer that the next call overwrites. Nothing here waits for the device, but in the first call
        after a change of the statistics.
        """
        drawn = [label for label, gaussian in enumerate(self.classes) if gaussian.count]
        labels = self._labels(drawn, means.device)
        if len(drawn) < len(means):
            means = means[labels]
        (classes, d), rows = means.shape, len(means) * count
        features = self._buffer("features", rows * d, means).view(classes, count, d)
        if self.cov == "shared":
            normals = self._buffer("normals", rows * d, means).view(rows, d).normal_(generator=generator)
            torch.mm(normals, self._shared_root(), out=features.view(rows, d))
            features += means[:, None]
        else:
            gaussians = [self[label] for label in drawn]
            rank = max((len(g.factor) for g in gaussians), default=0)
            at_once = max(batch_numbers(means) // max(count * (rank + d), rank * d), 1)
            scratch = self._buffer("normals", min(at_once, classes) * count * rank, means)
            for first in range(0, classes, at_once):
                part = slice(first, first + at_once)
                draw_into(features[part], gaussians[part], means[part], self.ridge, generator, scratch)
        return features.view(rows, d), labels.repeat_interleave(count)

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
        self.classes = self._stored([Gaussian(*each) for each in zip(state["means"], factors, state["counts"].tolist(), state["noise"],
                                                                     strict=True)])

    # Private -------------------------------------------------------------------------------------------------

    def _fit_batch(self, batch: ClassBatch) -> list[Gaussian]:
        if self.cov not in ("diag", "shared"):
            return self._stored(_fit_batch(batch, self.rank))
        means = batch.means.float()
        noise = means.new_zeros(len(means), 1)
        if self.cov == "diag":
            noise = (batch.centred.square().sum(dim=1, dtype=torch.float64) / (batch.sizes()[:, 0] - 1).clamp_min(1)).float()
        else:
            rows = batch.centred.flatten(0, 1)
            self.pooled = (rows.T @ rows).float() + (0 if self.pooled is None else self.pooled)
        nothing = means.new_zeros(0, means.shape[1])
        return [Gaussian(mean, nothing, count, own) for mean, count, own in zip(means, batch.counts, noise, strict=True)]

    def _stored(self, gaussians: list[Gaussian]) -> list[Gaussian]:
        """The same with factors of the wanted type; one that would not fit it stays float32."""
        if self.dtype == torch.float32:
            return [Gaussian(g.mean, g.factor.float(), g.count, g.noise) for g in gaussians]
        largest = torch.stack([g.factor.abs().max() if g.factor.numel() else g.mean.new_zeros(()) for g in gaussians])
        fits = (largest <= torch.finfo(self.dtype).max).tolist()
        return [Gaussian(g.mean, g.factor.to(self.dtype) if fit else g.factor.float(), g.count, g.noise)
                for g, fit in zip(gaussians, fits, strict=True)]

    def _degrees_of_freedom(self) -> int:
        return sum(max(g.count - 1, 0) for g in self.classes)

    def _shared_root(self) -> Tensor:
        """(d, d) R with R' R = the pooled covariance + ridge I; worked out once for all draws of an alignment."""
        if "root" not in self._buffers:
            values, vectors = torch.linalg.eigh(self.pooled_covariance().double())
            self._buffers["root"] = ((values.clamp_min(0) + self.ridge).sqrt()[:, None] * vectors.T).float()
        return self._buffers["root"]

    def _labels(self, drawn: list[int], device: torch.device) -> Tensor:
        """`drawn` on the device, brought there once for all draws of an alignment."""
        if "labels" not in self._buffers:
            self._buffers["labels"] = torch.tensor(drawn, dtype=torch.long, device=device)
        return self._buffers["labels"]

    def _buffer(self, name: str, size: int, like: Tensor) -> Tensor:
        """`size` numbers to overwrite, float32 on the device of `like`."""
        found = self._buffers.get(name)
        if found is None or len(found) < size or found.device != like.device:
            found = self._buffers[name] = torch.empty(size, dtype=torch.float32, device=like.device)
        return found[:size]


def draw_into(out: Tensor, gaussians: list[Gaussian], means: Tensor, ridge: float, generator: torch.Generator, scratch: Tensor) -> None:
    """Fill `out` (K, count, d) with mean + e A + sqrt(noise + ridge) e', e and e' standard normal.

    One product for classes in a row whose factors have the same rank. The ridge is noise beside the factor: it needs d more
    normals per draw, but no factor of its own.

    Args:
        means: (K, d) to draw around (SLCA shrinks old means).
        scratch: (sum of ranks * count,) or more numbers that may be overwritten; random numbers cost more in fresh memory.
    """
    deviations = (torch.stack([g.noise for g in gaussians]) + ridge).sqrt()[:, None]  # (K, 1, 1 or d)
    torch.addcmul(means[:, None], out.normal_(generator=generator), deviations, out=out)
    count, ranks = out.shape[1], [len(g.factor) for g in gaussians]
    normals = scratch[: sum(ranks) * count].normal_(generator=generator)
    used = 0
    for part, rank in equal_runs(ranks, lambda rank: len(ranks)):
        if rank:
            factors = torch.stack([g.factor.float() for g in gaussians[part]])
            size = len(factors) * count * rank
            out[part].baddbmm_(normals[used:used + size].view(-1, count, rank), factors)
            used += size


def scatter_rows(old: Gaussian, new: Gaussian) -> Tensor:
    """X (m, d) with X' X = the squared deviations of both ones' images from their common mean, but for `old.noise`.

    (n1 - 1) S1 + (n2 - 1) S2 + n1 n2 / (n1 + n2) (mu1 - mu2)(mu1 - mu2)'   (Chan, Golub & LeVeque 1979)
    """
    rows = [max(g.count - 1, 0) ** 0.5 * g.factor.float() for g in (old, new)]
    if old.count and new.count:
        rows.append((old.count * new.count / (old.count + new.count)) ** 0.5 * (old.mean - new.mean)[None])
    return torch.cat(rows)


def _fit_batch(batch: ClassBatch, rank: int | None) -> list[Gaussian]:
    """Exact Gaussians; with a `rank`, its leading directions and noise of those classes that have more."""
    k, n, d = batch.centred.shape
    means, noise = batch.means.float(), batch.means.new_zeros(k, 1).float()
    if rank is None or min(n - 1, d) <= rank:
        factors = exact_factors(batch)
    else:
        factors, left_out = leading_directions(batch.centred / (batch.sizes() - 1).clamp_min(1).sqrt(), rank)
        noise = left_out[:, None]
    return [Gaussian(*each) for each in zip(means, factors, batch.counts, noise, strict=True)]
