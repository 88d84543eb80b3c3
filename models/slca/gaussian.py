"""One class's Gaussian, N(mu, S + ridge I) with S in factor form, and drawing from several of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.slca.batches import class_batches, equal_runs
from models.slca.factors import fitted_factors, triangular


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
        batch = next(class_batches(features, labels, range(1)))
        factors, noise = fitted_factors(batch, rank)
        return cls(batch.means[0].float(), factors[0], len(features), noise[0])

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


def draw_into(out: Tensor, gaussians: Sequence[Gaussian], means: Tensor, ridge: float, generator: torch.Generator, scratch: Tensor) -> None:
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
