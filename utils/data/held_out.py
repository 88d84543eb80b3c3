"""Which training images are held out for validation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from utils.config import Config
from utils.data.types import ImageSet, members_by_group
from utils.rng import numpy_generator


def validation_members(labels: np.ndarray, fraction: float, sizes: Sequence[int] = ()) -> np.ndarray:
    """Positions (n,) of `fraction` of each class's images, the same for every seed of the class order; ascending.

    A class of two or more images gives at least one and keeps at least one.

    Args:
        sizes: images of each place that they come from (default: one); what is held out of one does not depend on the others.
    """
    if not fraction or not len(labels):
        return np.empty(0, dtype=np.int64)
    found, starts = [], np.cumsum([0, *(sizes or [len(labels)])])
    for number, (start, stop) in enumerate(itertools.pairwise(starts)):
        place = ("added", number) if number else ()
        for members in members_by_group(labels[start:stop]):
            count = min(max(1, round(fraction * len(members))), len(members) - 1)
            # named by the first image, not by the label, which the class order changes
            found.append(start + numpy_generator("validation", *place, int(members[0])).permutation(members)[:count])
    return np.sort(np.concatenate(found))


def validation_notes(config: Config, train: ImageSet) -> list[str]:
    """A note about classes (of one domain, in that scenario) that are too small to give a validation image."""
    if not config.val_fraction:
        return []
    by_domain = config.scenario == "domain" and train.domains is not None
    groups = train.labels + (int(train.labels.max()) + 1) * train.domains if by_domain else train.labels
    sizes = np.unique(groups, return_counts=True)[1]
    single = int((sizes == 1).sum())
    if not single:
        return []
    nothing = "; there is no validation image at all, and validation accuracies will be null" if single == len(sizes) else ""
    return [f"{single} of {len(sizes)} classes have one training image, which is trained on, so they have no validation image{nothing}"]
