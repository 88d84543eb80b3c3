"""How well a score tells images of unknown classes from those of known ones; larger scores are less known.

Pure functions on numpy arrays; percentages in [0, 100], None where there is no image of one kind.
"""

from __future__ import annotations

import numpy as np

KEPT = 0.95  # share of known images that FPR95 keeps
FIGURES = ("auroc_distance", "fpr95_distance", "auroc_energy", "fpr95_energy")  # of both scores (models/unknown.py)


def auroc(known: np.ndarray, unknown: np.ndarray) -> float | None:
    """Percent of the pairs of a known and an unknown image in which the unknown one scores higher; an equal score counts half.

    The area under the ROC curve. known: (N,), unknown: (M,) float.
    """
    if not len(known) or not len(unknown):
        return None
    known = np.sort(known)
    below, upto = (np.searchsorted(known, unknown, side).sum() for side in ("left", "right"))
    return 100.0 * int(below + upto) / (2 * len(known) * len(unknown))


def fpr95(known: np.ndarray, unknown: np.ndarray, kept: float = KEPT) -> float | None:
    """Percent of the unknown images that pass for known ones at the smallest threshold which lets the share `kept` of these pass.

    known: (N,), unknown: (M,) float.
    """
    if not len(known) or not len(unknown):
        return None
    enough = np.arange(1, len(known) + 1) / len(known) >= kept
    threshold = np.sort(known)[np.argmax(enough)]
    return 100.0 * int(np.count_nonzero(unknown <= threshold)) / len(unknown)
