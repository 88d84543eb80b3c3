"""What lies behind an accuracy: classes, confusion between tasks, calibration."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from utils.formulas.diagnosis import calibration_error, class_accuracies, shares, taken_between_old_and_new, task_confusion
from utils.formulas.metrics import evaluate_predictions


def test_each_class_has_its_share_of_right_images_and_none_without_images() -> None:
    assert class_accuracies(np.array([0, 1, 2, 2]), np.array([0, 0, 2, 2]), 4) == [50.0, None, 100.0, None]


def test_the_confusion_between_tasks_is_that_of_scikit_learn_on_the_classes_tasks() -> None:
    rng = np.random.default_rng(0)
    labels, predictions, owner = rng.integers(0, 7, 200), rng.integers(0, 7, 200), np.array([0, 0, 1, 1, 1, 2, 2])
    expected = confusion_matrix(owner[labels], owner[predictions], labels=range(3)).tolist()
    assert task_confusion(predictions, labels, owner, 3) == expected


def test_shares_are_percent_of_a_row_and_a_row_without_images_has_none() -> None:
    assert shares([[3, 1], [0, 0]]) == [[75.0, 25.0], [None, None]]


def test_what_old_and_new_classes_take_from_each_other() -> None:
    assert taken_between_old_and_new([[6, 2, 2], [0, 10, 0], [1, 0, 3]]) == (10.0, 25.0)
    assert taken_between_old_and_new([[4]]) == (None, None)
    assert taken_between_old_and_new([[0, 0], [1, 1]]) == (None, 50.0)


def test_the_calibration_error_of_two_bins_is_that_found_by_hand() -> None:
    confidences, correct = np.array([0.9, 0.9, 0.6, 0.6]), np.array([True, True, True, False])
    assert calibration_error(confidences, correct) == pytest.approx(100 * (0.5 * 0.1 + 0.5 * 0.1))
    assert calibration_error(np.array([]), np.array([], dtype=bool)) is None


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50))
def test_the_calibration_error_is_a_percentage(pairs: list[tuple[float, bool]]) -> None:
    confidences, correct = map(np.array, zip(*pairs, strict=True))
    assert 0 <= calibration_error(confidences, correct) <= 100 + 1e-9


def test_an_evaluation_of_domains_has_classes_and_no_confusion_of_tasks() -> None:
    found = evaluate_predictions(np.array([[1], [0], [1], [1]]), np.array([1, 0, 3, 2]), np.array([1, 0, 1, 1]), np.array([0, 0, 1, 1]),
                                 task=1, known_classes=2, period=2)
    assert found.class_accuracies == [50.0, 100.0] and found.confusion == [] and found.calibration_error is None
