"""Per-class Gaussians of the features, N(mu_c, S_c + ridge I), held in factor form.

With n features of dimension d the covariance has rank r <= min(n - 1, d), so S_c = A' A with A of shape (r, d) is
exact and no d x d matrix is kept when n < d. SLCA section 3.3; METHOD "Statistics": unbiased covariance + 1e-4 I.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# Directions whose variance is below this share of the largest are rounding, not data.
RANK_TOLERANCE = 1e-10


@dataclass(frozen=True)
class Gaussian:
    """One class: mean (d,), factor (r, d) with S = factor' factor, and the number of images it was fitted on."""

    mean: Tensor
    factor: Tensor
    count: int

    @classmethod
    def fit(cls, features: Tensor, rank: int | None = None) -> Gaussian:
        """Mean and exact factor of the unbiased covariance.

        Args:
            features: (n, d) float32. One image gives an empty factor (its covariance is 0); no image (DomainNet has classes
                that a domain lacks) gives a Gaussian of count 0, which is never sampled.
            rank: keep at most this many leading directions.

        The rows of the factor are scaled eigenvectors of the covariance, so no image's feature is stored. The
        smaller of the n x n Gram matrix and the d x d covariance is decomposed, in float64.
        """
        n, d = features.shape
        centred = features.double()
        mean = centred.sum(dim=0) / max(n, 1)
        centred = centred - mean
        if n <= 1:
            return cls(mean.float(), features.new_zeros(0, d), n)
        wide = n < d
        gram = centred @ centred.T if wide else centred.T @ centred  # (n, n) or (d, d)
        values, vectors = torch.linalg.eigh(gram / (n - 1))  # ascending
        keep = values > RANK_TOLERANCE * values[-1].clamp_min(torch.finfo(torch.float64).tiny)
        if rank is not None:
            keep[: max(len(values) - rank, 0)] = False
        vectors, values = vectors[:, keep], values[keep]
        if wide:  # rows u_i' F / sqrt(n - 1) have length sqrt(lambda_i)
            factor = vectors.T @ centred / (n - 1) ** 0.5
        else:
            factor = (vectors * values.sqrt()).T
        return cls(mean.float(), factor.float().contiguous(), n)

    def covariance(self, ridge: float = 0.0) -> Tensor:
        """S + ridge I, (d, d); for tests and plots, never needed to train."""
        return self.factor.T @ self.factor + ridge * torch.eye(len(self.mean), device=self.mean.device)

    def sample(self, count: int, ridge: float, generator: torch.Generator, mean: Tensor | None = None) -> Tensor:
        """`count` draws mean + e A + sqrt(ridge) e', e and e' standard normal: (count, d).

        Args:
            mean: another mean to draw around (SLCA shrinks old means); default the class's own.
        """
        rank, d = self.factor.shape
        around = self.mean if mean is None else mean
        e = torch.randn(count, rank, generator=generator, device=self.factor.device)
        e_ridge = torch.randn(count, d, generator=generator, device=self.factor.device)
        return e_ridge.mul_(ridge**0.5).add_(around).addmm_(e, self.factor)


class ClassGaussians:
    """The Gaussians of all classes seen so far, in learning order. They stay as they were when a class was learned."""

    def __init__(self, ridge: float = 1e-4) -> None:
        self.ridge = ridge
        self.classes: list[Gaussian] = []  # class c of the stream at position c; grows by C_t per task

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
        for label in classes:
            self.classes.append(Gaussian.fit(features[labels == label]))
        return [label for label in classes if self[label].count <= features.shape[1]]

    def means(self) -> Tensor:
        """(K, D)."""
        return torch.stack([g.mean for g in self.classes])

    def sample(self, means: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`count` features of every class that had images, around `means` (K, D): features (N, D) and labels (N,)."""
        drawn = [label for label, g in enumerate(self.classes) if g.count]
        features = torch.cat([self[label].sample(count, self.ridge, generator, means[label]) for label in drawn])
        return features, torch.tensor(drawn, device=features.device).repeat_interleave(count)

    def nbytes(self) -> int:
        return sum(g.mean.nbytes + g.factor.nbytes for g in self.classes)

    def state_dict(self) -> dict[str, Tensor]:
        """Flat tensors for a checkpoint: all factors stacked by rows, with each class's rank and count."""
        if not self.classes:
            return {}
        return {"means": self.means(), "factors": torch.cat([g.factor for g in self.classes]),
                "ranks": torch.tensor([len(g.factor) for g in self.classes]),
                "counts": torch.tensor([g.count for g in self.classes])}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if not state:
            self.classes = []
            return
        factors = state["factors"].split(state["ranks"].tolist())
        self.classes = [Gaussian(mean, factor, count)
                        for mean, factor, count in zip(state["means"], factors, state["counts"].tolist())]
