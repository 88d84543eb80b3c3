"""Class prototypes when the features of old images are gone: synthesised (EASE), or shifted with the new ones (SSIAT).

K classes in T tasks, D dimensions. With an adapter per task, a class of task i has a prototype under each adapter j <= i
and later ones: `prototypes` is (K, T, D), and a class is *measured* under the adapters up to its own task's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SHIFT_WIDTH, SHIFT_FLOOR = 4.0, 1e-5  # SSIAT's release
SHIFT_PAIRS_AT_ONCE = 2**22  # (class, image) pairs in one product; bounds memory


def synthesise_prototypes(prototypes: Tensor, task_of_class: Tensor) -> Tensor:
    """Prototypes of old classes under newer adapters (EASE, arXiv 2403.12030).

        P_cj = sum_k softmax_k(cos(P_ci, P_ki)) P_kj,   i the task of c, j > i, k over the classes of the tasks >= j

    Args:
        prototypes: (K, T, D), of which [c, j] for j <= task of c is measured and all else is ignored.
        task_of_class: (K,) in 0..T-1.

    Returns:
        A copy with all else filled in.
    """
    filled = prototypes.clone()
    for i in range(prototypes.shape[1]):
        own = task_of_class == i
        for j in range(i + 1, prototypes.shape[1]):
            newer = task_of_class >= j
            cosines = F.normalize(prototypes[own, i], dim=1) @ F.normalize(prototypes[newer, i], dim=1).T  # (K_i, K_new)
            filled[own, j] = cosines.softmax(dim=1) @ prototypes[newer, j]
    return filled


def prototype_scores(features: Tensor, prototypes: Tensor, task_of_class: Tensor, others: float) -> Tensor:
    """cos(z_i, P_ci) + (a / t) sum over j != i of cos(z_j, P_cj), t = T - 1 (EASE); one task: plain cosine.

    Args:
        features: (N, T, D), z_j under adapter j; prototypes: (K, T, D); task_of_class: (K,); others: a.

    Returns:
        (N, K).
    """
    cosines = torch.einsum("ntd,ktd->nkt", F.normalize(features, dim=2), F.normalize(prototypes, dim=2))  # (N, K, T)
    own = cosines.gather(2, task_of_class.view(1, -1, 1).expand(features.shape[0], -1, 1)).squeeze(2)  # (N, K)
    newer_tasks = prototypes.shape[1] - 1
    return own if newer_tasks == 0 else own + others / newer_tasks * (cosines.sum(dim=2) - own)


def shift_means(means: Tensor, before: Tensor, after: Tensor, *, width: float = SHIFT_WIDTH, floor: float = SHIFT_FLOOR) -> Tensor:
    """Old means moved as the new images near them have moved (SSIAT, arXiv 2403.19979, after SDC, arXiv 2004.00440).

        mu_c <- mu_c + sum_i w_ci (y_i - x_i),   w_ci ~ exp(-|x_i - mu_c|^2 / 2 s^2) + floor, summing to 1 over i

    Args:
        means: (K, D); before, after: (n, D), x and y, features of the same images in the same order; width: s.

    Returns:
        (K, D); `means` themselves where there is no image.
    """
    assert before.shape == after.shape, "before and after are features of the same images"
    if not len(before):
        return means.clone()
    drift, shifted = after - before, []
    for part in means.split(max(1, SHIFT_PAIRS_AT_ONCE // len(before))):
        weights = torch.cdist(part, before, compute_mode="donot_use_mm_for_euclid_dist").square().div(-2 * width**2).exp() + floor
        shifted.append(part + weights @ drift / weights.sum(dim=1, keepdim=True))
    return torch.cat(shifted)
