"""Features of many classes, class by class, without asking the device once per class."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from utils.errors import UserError


def positions_by_class(labels: Tensor, classes: range) -> tuple[Tensor, ...]:
    """Where the images of each of `classes` are, in their own order: one sort and one wait for the device in all.

    Args:
        labels: (N,) int64; those of other classes are passed over.
    """
    ordered, positions = labels.sort(stable=True)
    edges = torch.arange(classes.start, classes.stop + 1, device=labels.device)
    bounds = torch.searchsorted(ordered, edges).tolist()
    return positions[bounds[0]:bounds[-1]].split([after - before for before, after in pairwise(bounds)])


def require_finite(rows: Tensor, labels: Sequence[int] | Tensor) -> None:
    """Nothing can be computed from a feature that is NaN or infinite.

    Args:
        rows: (N, D) features, or sums or means of features; labels: the class of each row.

    Raises:
        UserError: a row is not finite; it names the first class that has one.
    """
    finite = rows.isfinite().all(dim=1)
    if finite.all():
        return
    first = int(labels[int(finite.logical_not().nonzero()[0])])
    raise UserError(f"the backbone's features of class {first} (in the order of learning, from 0) are not all finite numbers (NaN or "
                    "infinite), so no statistics can be made of them. Either training diverged (lower lr or bcb_lrscale, or set "
                    "precision to 32-true), or the pre-trained weights or an image of that class hold such values.")
