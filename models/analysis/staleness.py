"""How far the Gaussians that a learner keeps are from those that its classes have now."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from models.analysis.states import Seen, State
from models.base import BaseLearner
from models.slca.gaussian import Gaussian
from models.slca.gaussians import ClassGaussians
from utils.formulas.frechet import frechet_bound, frechet_distance


class Remembered:
    """The Gaussians that classes are known by: those that the learner stores, else those of when each class was learned.

    The states are to be shown in their order. Features of several passes, which grow with the tasks, have none.
    """

    def __init__(self, classes: int, dim: int) -> None:
        self.classes, self.dim = classes, dim
        self.stored = False  # whether the learner stores them
        self.kept: list[Gaussian] = []  # of the classes known, in learning order
        self.now: list[Gaussian] = []  # of the same classes under the state shown last

    def show(self, learner: BaseLearner, state: State, seen: Seen, known: int) -> None:
        """Take the state after which `known` classes are known."""
        self.now = []
        if not known or state.train.flatten(1).shape[1] != self.dim:
            return
        owner = torch.from_numpy(seen.train_labels)
        self.now = [Gaussian.fit(state.train.flatten(1)[owner == c]) for c in range(known)]
        stored = stored_gaussians(learner, known, self.dim)
        self.stored = bool(stored)
        self.kept = stored or [*self.kept, *self.now[len(self.kept):]]

    def mean_cosines(self) -> list[float | None]:
        """(K,) cosine of each known class's remembered mean with its mean now."""
        return self._padded([F.cosine_similarity(kept.mean, now.mean, dim=0).item() if kept.count and now.count else None
                             for kept, now in zip(self.kept, self.now, strict=False)])

    def distances(self) -> list[float | None]:
        """(K,) Frechet distance of each known class's remembered Gaussian to its own now, in units of its spread now."""
        return self._padded([relative_distance(kept, now) for kept, now in zip(self.kept, self.now, strict=False)])

    def nearest(self, label: int, count: int) -> list[tuple[int, float]]:
        """The `count` remembered Gaussians nearest to the one that the class has now, and how far they are; its own may be among them."""
        if not self.now:
            return []
        now, others = self.now[label], [c for c, kept in enumerate(self.kept) if kept.count]
        spreads = torch.tensor([_spread(self.kept[c]) for c in others])
        bounds = frechet_bound(now.mean, torch.tensor(_spread(now)), torch.stack([self.kept[c].mean for c in others]), spreads)
        found: list[tuple[float, int]] = []
        for place in bounds.argsort().tolist():
            if len(found) >= count and bounds[place] / (_spread(now) or 1.0) > found[count - 1][0]:
                break  # all that follow are farther
            distance = relative_distance(self.kept[others[place]], now)
            found = sorted([*found, *([] if distance is None else [(distance, others[place])])])
        return [(c, distance) for distance, c in found[:count]]

    def _padded(self, values: Sequence[float | None]) -> list[float | None]:
        return [*values, *[None] * (self.classes - len(values))]


def relative_distance(kept: Gaussian, now: Gaussian) -> float | None:
    """Frechet distance over sqrt(tr S) of `now`; None where one has no images or no spread."""
    if not (kept.count and now.count and _spread(now)):
        return None
    return frechet_distance(kept.mean, kept.factor, now.mean, now.factor, kept.noise) / _spread(now)


def _spread(gaussian: Gaussian) -> float:
    """sqrt(tr S): how far an image of the class is from the mean, root mean square."""
    noise = gaussian.noise.double().expand(len(gaussian.mean)).sum()
    return (gaussian.factor.double().square().sum() + noise).sqrt().item()


def stored_gaussians(learner: BaseLearner, known: int, dim: int) -> list[Gaussian]:
    """Those that the learner keeps of all known classes, on the CPU; none where it keeps none, or of other features."""
    kept = getattr(learner, "gaussians", None)
    if not isinstance(kept, ClassGaussians) or len(kept) != known or len(kept[0].mean) != dim:
        return []
    pooled, factor = kept.pooled_covariance(), None
    if pooled is not None:  # one covariance of all classes
        values, vectors = torch.linalg.eigh(pooled.double().cpu())
        factor = (values.clamp_min(0).sqrt()[:, None] * vectors.T).float()
    factors = [g.factor.float().cpu() if factor is None else factor for g in kept.classes]
    return [Gaussian(g.mean.float().cpu(), a, g.count, g.noise.cpu()) for g, a in zip(kept.classes, factors, strict=True)]
