"""Images of no known class: the relative Mahalanobis distance from the classes' Gaussians (Ren et al. 2021, arXiv 2106.09022).

    RMD(x) = min_c (x - mu_c)' S^-1 (x - mu_c)  -  (x - mu_0)' S_0^-1 (x - mu_0)

S is the covariance within classes, pooled over their images; mu_0 and S_0 are mean and covariance of all images together. All of
it follows from the Gaussians that are kept, so no old image is needed. An image is called unknown where RMD is larger than for a
stated share of the known classes' images.

Differs from the paper: that share is of features drawn from the Gaussians, since those of old images are not kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.slca.gaussians import ClassGaussians
from utils.rng import torch_generator

DRAWN = 20_000  # features over all classes that a threshold is read from
DRAWN_PER_CLASS = 200  # of each class at most


class GaussianRegion:
    """Where the images of the classes seen so far lie.

    Args:
        gaussians: of these classes; at least one has images.
    """

    def __init__(self, gaussians: ClassGaussians) -> None:
        self.gaussians = gaussians
        present = [g for g in gaussians.classes if g.count]
        counts = torch.tensor([g.count for g in present], dtype=torch.float64)
        means = torch.stack([g.mean.cpu().double() for g in present])  # (K, D)
        pooled = gaussians.pooled_covariance()
        freedom = max(sum(g.count - 1 for g in present), 1)
        if pooled is not None:
            scatter = freedom * pooled.cpu().double()
        else:
            scatter = sum((g.count - 1) * g.covariance().cpu().double() for g in present)
        ridge = gaussians.ridge * torch.eye(means.shape[1], dtype=torch.float64)
        self.centre = counts @ means / counts.sum()
        between = (means - self.centre).T * counts @ (means - self.centre)
        self.whitener = _whitener(scatter / freedom + ridge)
        self.whitener_of_all = _whitener((scatter + between) / max(counts.sum().item() - 1, 1) + ridge)
        self.whitened_means = means @ self.whitener

    def distances(self, features: Tensor) -> Tensor:
        """RMD of features (N, D), (N,) float64 on the CPU; larger is less known."""
        features = features.cpu().double()
        whitened, means = features @ self.whitener, self.whitened_means  # no cdist: it chooses its way by N, which cannot be exported
        squared = whitened.square().sum(dim=1, keepdim=True) - 2 * whitened @ means.T + means.square().sum(dim=1)  # (N, K)
        nearest = squared.amin(dim=1)
        return nearest - ((features - self.centre) @ self.whitener_of_all).square().sum(dim=1)

    def threshold(self, share: float, torch_seed: int = 1) -> float:
        """The distance that `share` of the known classes' drawn features stay within; the same for the same seed."""
        return self.distances(drawn_features(self.gaussians, torch_seed)).quantile(share).item()


def drawn_features(gaussians: ClassGaussians, torch_seed: int) -> Tensor:
    """Features (M, D) of the known classes as their Gaussians have them; the same for the same seed."""
    means = gaussians.means()
    count = max(min(DRAWN_PER_CLASS, DRAWN // len(means)), 1)
    drawn, _ = gaussians.sample(means, count, torch_generator(torch_seed, "unknown", device=means.device))
    gaussians.free_buffers()
    return drawn


def _whitener(covariance: Tensor) -> Tensor:
    """W (D, D) with |x W|^2 = x' S^-1 x."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors / values.clamp_min(torch.finfo(values.dtype).tiny).sqrt()
