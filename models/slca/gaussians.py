"""Per-class Gaussians of the features, N(mu_c, S_c + ridge I), held in factor form.

With n features of dimension d the covariance has rank r <= min(n - 1, d), so S_c = A' A with A of shape (r, d) is
exact and no d x d matrix is kept when n < d. SLCA section 3.3; the release takes the unbiased covariance + 1e-4 I.
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

from collections.abc import Collection, Mapping
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from models.slca.batches import ClassBatch, Workspace, class_batches, numbers_at_once
from models.slca.factors import fitted_factors, leading_directions
from models.slca.gaussian import Gaussian, draw_into, scatter_rows
from utils.errors import UserError

FLOAT_BYTES = 4
DEFAULT_RANK = 64  # of lowrank, where the config names none


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
        self.fitted: list[int] = []  # classes of each call of `fit`
        self.pooled: Tensor | None = None  # (d, d) sum over classes of (n_c - 1) S_c; shared only
        self.free_buffers()

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
        self.fitted.append(len(classes))
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

    def join(self, other: ClassGaussians) -> None:
        """Append another's classes."""
        self.free_buffers()
        self.classes = [*self.classes, *other.classes]
        self.fitted = [*self.fitted, *other.fitted]
        if other.pooled is not None:
            self.pooled = other.pooled + (0 if self.pooled is None else self.pooled)

    def drop(self, labels: Collection[int]) -> None:
        """Forget these classes as `remove` does, and number the others anew. Raises UserError where all classes share one covariance."""
        for label in labels:
            self.remove(label)
        parts = [[g for label, g in enumerate(self.classes[start:stop], start) if label not in labels]
                 for start, stop in pairwise(accumulate(self.fitted, initial=0))]
        self.fitted = [len(part) for part in parts if part]
        self.classes = [g for part in parts for g in part]

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

        The features lie in a buffer that the next call overwrites. Nothing here waits for the device, but for classes without
        images and for a shared covariance in the first call after a change of the statistics.
        """
        drawn = [label for label, gaussian in enumerate(self.classes) if gaussian.count]
        labels = self._labels(drawn, means.device)
        if len(drawn) < len(means):
            means = means[labels]
        (classes, d), rows = means.shape, len(means) * count
        features = self._space.take("features", means, classes, count, d)
        if self.cov == "shared":
            normals = self._space.take("normals", means, rows, d).normal_(generator=generator)
            torch.mm(normals, self._shared_root(), out=features.view(rows, d))
            features += means[:, None]
        else:
            gaussians = [self[label] for label in drawn]
            rank = max((len(g.factor) for g in gaussians), default=0)
            at_once = max(numbers_at_once(means) // max(count * (rank + d), rank * d), 1)
            scratch = self._space.take("normals", means, min(at_once, classes) * count * rank)
            for first in range(0, classes, at_once):
                part = slice(first, first + at_once)
                draw_into(features[part], gaussians[part], means[part], self.ridge, generator, scratch)
        return features.view(rows, d), labels.repeat_interleave(count)

    def free_buffers(self) -> None:
        """Give back the memory that drawing reused."""
        self._space = Workspace()
        self._drawn: list[int] | None = None  # the classes that "labels" below holds
        self._derived: dict[str, Tensor] = {}  # what drawing needs besides the statistics, worked out once per alignment

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
        """Flat tensors for a checkpoint, "<n>.means" and so on for the n-th call of `fit`: factors by rows, with ranks and counts."""
        state: dict[str, Tensor] = {} if self.pooled is None else {"pooled": self.pooled}
        for number, part in enumerate(self.parts()):
            state |= {f"{number}.means": torch.stack([g.mean for g in part]), f"{number}.factors": torch.cat([g.factor for g in part]),
                      f"{number}.ranks": torch.tensor([len(g.factor) for g in part]),
                      f"{number}.counts": torch.tensor([g.count for g in part]), f"{number}.noise": torch.stack([g.noise for g in part])}
        return state

    def parts(self) -> list[tuple[Gaussian, ...]]:
        """The Gaussians by the call of `fit` that they came from. As long as a part holds the same objects its statistics are unchanged."""
        ends = [0, *accumulate(self.fitted)]
        rest = [len(self.classes)] if ends[-1] < len(self.classes) else []
        return [tuple(self.classes[start:stop]) for start, stop in pairwise([*ends, *rest])]

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.free_buffers()
        self.pooled = state.get("pooled")
        self.classes, self.fitted = [], []
        while f"{len(self.fitted)}.means" in state:
            part = {key: state[f"{len(self.fitted)}.{key}"] for key in ("means", "factors", "ranks", "counts", "noise")}
            factors = part["factors"].split(part["ranks"].tolist())
            self.classes += self._stored([Gaussian(*each) for each in zip(part["means"], factors, part["counts"].tolist(), part["noise"],
                                                                          strict=True)])
            self.fitted.append(len(factors))

    # Private -------------------------------------------------------------------------------------------------

    def _fit_batch(self, batch: ClassBatch) -> list[Gaussian]:
        means = batch.means.float()
        factors, noise = [means.new_zeros(0, means.shape[1])] * len(means), means.new_zeros(len(means), 1)
        if self.cov in ("full", "lowrank"):
            factors, noise = fitted_factors(batch, self.rank)
        elif self.cov == "diag":
            noise = (batch.centred.square().sum(dim=1, dtype=torch.float64) / (batch.sizes()[:, 0] - 1).clamp_min(1)).float()
        else:
            rows = batch.centred.flatten(0, 1)
            self.pooled = (rows.T @ rows).float() + (0 if self.pooled is None else self.pooled)
        return self._stored([Gaussian(*each) for each in zip(means, factors, batch.counts, noise, strict=True)])

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
        if "root" not in self._derived:
            values, vectors = torch.linalg.eigh(self.pooled_covariance().double())
            self._derived["root"] = ((values.clamp_min(0) + self.ridge).sqrt()[:, None] * vectors.T).float()
        return self._derived["root"]

    def _labels(self, drawn: list[int], device: torch.device) -> Tensor:
        """`drawn` on the device, brought there once for all draws of an alignment."""
        if self._drawn != drawn:
            self._drawn, self._derived["labels"] = drawn, torch.arange(len(self), device=device)
            if len(drawn) < len(self):
                self._derived["labels"] = torch.tensor(drawn, dtype=torch.long, device=device)
        return self._derived["labels"]
