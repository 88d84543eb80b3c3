"""AUROC and FPR95 against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from utils.formulas.unknown import auroc, fpr95


def by_scikit_learn(known: np.ndarray, unknown: np.ndarray) -> tuple[float, float]:
    """Both in percent; known images are the positives of FPR95, so that its rate is of unknown ones taken for known."""
    is_known, scores = np.repeat([1, 0], [len(known), len(unknown)]), -np.concatenate([known, unknown])
    taken, kept, _ = roc_curve(is_known, scores, drop_intermediate=False)
    return 100 * roc_auc_score(is_known, scores), 100 * taken[np.argmax(kept >= 0.95)]


@pytest.mark.parametrize(("known", "unknown"), [(200, 150), (7, 300), (20, 1), (1, 1), (19, 5)])
@pytest.mark.parametrize("decimals", [6, 0])  # 0: most scores are equal to others
def test_both_are_those_of_scikit_learn_with_and_without_equal_scores(known, unknown, decimals):
    rng = np.random.default_rng([known, unknown])
    one, other = rng.normal(0, 2, known).round(decimals), rng.normal(1, 2, unknown).round(decimals)
    expected = by_scikit_learn(one, other)
    assert (auroc(one, other), fpr95(one, other)) == pytest.approx(expected, abs=1e-9)


def test_scores_that_are_all_alike_tell_nothing_and_infinite_ones_have_a_place():
    assert (auroc(np.zeros(5), np.zeros(3)), fpr95(np.zeros(5), np.zeros(3))) == (50.0, 100.0)
    assert (auroc(np.array([0.0, 1.0]), np.array([np.inf])), fpr95(np.array([0.0, np.inf]), np.array([np.inf]))) == (100.0, 100.0)


def test_images_of_one_kind_alone_leave_both_undefined():
    for one, other in ((np.ones(4), np.empty(0)), (np.empty(0), np.ones(4)), (np.empty(0), np.empty(0))):
        assert auroc(one, other) is None and fpr95(one, other) is None
