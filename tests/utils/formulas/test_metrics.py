"""The metrics against hand-made cases and against what the release printed."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import numpy as np
import pytest

from utils.formulas import metrics

PARITY = json.loads((Path(__file__).parents[2] / "data/parity/5_accuracy.json").read_text())
MATRIX = [[90.0, None, None], [70.0, 80.0, None], [75.0, 50.0, 60.0]]


def arrays(case: dict, prediction_key: str) -> tuple[np.ndarray, np.ndarray]:
    return np.array(case[prediction_key]), np.array(case["y_true"])


@pytest.mark.parametrize("case", PARITY["accuracy"], ids=lambda case: case["tag"])
def test_release_accuracy_repeats_the_release_with_its_rounding_and_gaps(case: dict) -> None:
    predictions, labels = arrays(case, "y_pred")
    expected = {name: float(value) for name, value in case["grouped"].items()}      # "nan" is stored as text
    ours = metrics.release_accuracy(predictions, labels, case["nb_old"])
    assert list(ours) == list(expected)
    np.testing.assert_array_equal(list(ours.values()), list(expected.values()))


@pytest.mark.parametrize("case", PARITY["evaluate"], ids=lambda case: f"top{case['topk']}")
def test_top1_and_top5_agree_with_the_release_up_to_its_rounding(case: dict) -> None:
    topk, labels = arrays(case, "y_pred_topk")
    assert metrics.release_accuracy(topk[:, 0], labels, case["known"]) == case["result"]["grouped"]
    assert round(metrics.topk_accuracy(topk[:, :1], labels), 2) == case["result"]["top1"]
    assert round(metrics.topk_accuracy(topk, labels), 2) == case["result"]["top5"]


@pytest.mark.parametrize("case", PARITY["accuracy"], ids=lambda case: case["tag"])
def test_groups_of_ten_agree_with_the_release_wherever_it_has_a_figure(case: dict) -> None:
    predictions, labels = arrays(case, "y_pred")
    ours = metrics.grouped_accuracy(predictions, labels, case["nb_old"])
    for name, value in case["grouped"].items():
        if name == "total" or (name == "old" and case["nb_old"] == 0):              # the release prints 0 there
            continue
        assert ours[name] is None if value == "nan" else ours[name] == pytest.approx(value, abs=0.005)


@pytest.mark.parametrize("num_classes", [1, 2, 9, 10, 11, 20, 21, 101, 196])
def test_every_class_is_in_exactly_one_group_including_the_last(num_classes: int) -> None:
    labels = np.arange(num_classes)
    for one_class in range(num_classes):
        predictions = np.where(labels == one_class, labels, -1)                     # only this class is right
        groups = metrics.grouped_accuracy(predictions, labels, known_classes=0)
        hit = [name for name, value in groups.items() if name not in ("old", "new") and value]
        assert hit == [f"{one_class // 10 * 10:02d}-{one_class // 10 * 10 + 9:02d}"]


def test_forgetting_is_the_drop_from_the_best_earlier_accuracy() -> None:
    assert metrics.forgetting(MATRIX) == pytest.approx(((90 - 75) + (80 - 50)) / 2)


def test_backward_transfer_is_the_change_since_the_task_was_learned() -> None:
    assert metrics.backward_transfer(MATRIX) == pytest.approx(((75 - 90) + (50 - 80)) / 2)


def test_forgetting_may_be_negative_and_ignores_the_last_row_in_its_maximum() -> None:
    assert metrics.forgetting([[50.0, None], [60.0, 70.0]]) == pytest.approx(-10.0)


def test_forgetting_and_backward_transfer_are_undefined_for_one_task() -> None:
    assert metrics.forgetting([[88.0]]) is None
    assert metrics.backward_transfer([[88.0]]) is None
    assert metrics.forgetting([]) is None


def test_a_task_without_test_images_is_left_out_of_forgetting() -> None:
    matrix = [[None, None, None], [None, 80.0, None], [None, 50.0, 60.0]]
    assert metrics.forgetting(matrix) == pytest.approx(30.0)
    assert metrics.backward_transfer(matrix) == pytest.approx(-30.0)


def test_average_incremental_is_the_unrounded_mean_of_the_curve() -> None:
    assert metrics.average_incremental([100.0, 50.0, 100 / 3]) == pytest.approx((100 + 50 + 100 / 3) / 3, abs=1e-12)
    assert metrics.average_incremental([]) is None


def test_evaluation_measures_tasks_of_different_sizes_by_the_table_of_tasks() -> None:
    task_of_class = np.array([0, 0, 0, 1, 1, 2])
    labels = np.array([0, 1, 2, 3, 4, 5, 5])
    topk = np.array([[0, 1], [5, 1], [2, 0], [0, 1], [4, 3], [5, 0], [0, 5]])
    result = metrics.evaluate_predictions(
        topk, labels, task_predictions=np.array([0, 1, 2, 3, 3, 5, 5]), task_of_class=task_of_class,
        task=2, known_classes=5,
    )
    assert result.top1 == pytest.approx(400 / 7)
    assert result.top5 == pytest.approx(600 / 7)
    assert result.task_accuracies == pytest.approx([200 / 3, 50.0, 50.0])
    assert result.task_il == pytest.approx(600 / 7)
    assert result.old == pytest.approx(60.0) and result.new == pytest.approx(50.0)
    assert result.grouped == {"00-09": result.top1, "old": result.old, "new": result.new}


def test_evaluation_of_the_first_task_has_no_old_classes() -> None:
    labels = np.array([0, 1])
    result = metrics.evaluate_predictions(labels[:, None], labels, labels, np.array([0, 0]), task=0, known_classes=0)
    assert result.old is None and result.new == 100.0 and result.task_accuracies == [100.0]


def test_evaluation_without_any_image_is_undefined_not_an_error() -> None:
    none = np.zeros(0, dtype=np.int64)
    result = metrics.evaluate_predictions(np.zeros((0, 5), int), none, none, np.array([0]), task=0, known_classes=0)
    assert result.top1 is None and result.top5 is None and result.grouped == {"old": None, "new": None}


def test_a_domain_incremental_prediction_counts_whichever_domain_it_names() -> None:
    task_of_class = np.array([0, 0, 0, 1, 1, 1])                                    # 2 domains x 3 classes
    labels = np.array([0, 1, 3, 5])
    topk = np.array([[3], [2], [0], [5]])                                           # right class, wrong, right, right
    result = metrics.evaluate_predictions(topk, labels, labels, task_of_class, task=1, known_classes=3, period=3)
    assert result.top1 == 75.0 and result.task_accuracies == [50.0, 100.0]
    assert result.old == 50.0 and result.new == 100.0


def test_curves_are_the_figures_of_every_prefix():
    generator = np.random.default_rng(0)
    matrix = [[None if i > t or (t + i) % 7 == 3 else float(generator.uniform(0, 100)) for i in range(9)] for t in range(9)]
    prefixes = [[row[: t + 1] for row in matrix[: t + 1]] for t in range(9)]
    assert metrics.forgetting_curve(matrix) == [metrics.forgetting(prefix) for prefix in prefixes]
    assert metrics.backward_transfer_curve(matrix) == [metrics.backward_transfer(prefix) for prefix in prefixes]
    table = np.array(matrix, dtype=float)
    drops = [np.nanmax(table[:5, i]) - table[5, i] for i in range(5)]
    assert metrics.forgetting_curve(matrix)[5] == pytest.approx(np.nanmean(drops))


def test_harmonic_accuracy_is_the_harmonic_mean_of_both_groups() -> None:
    assert metrics.harmonic_accuracy(80.0, 40.0) == pytest.approx(statistics.harmonic_mean([80.0, 40.0])) == pytest.approx(160 / 3)
    assert metrics.harmonic_accuracy(90.0, 0.0) == 0.0 == metrics.harmonic_accuracy(0.0, 0.0)
    assert metrics.harmonic_accuracy(None, 50.0) is None is metrics.harmonic_accuracy(50.0, None)


def test_base_classes_are_the_first_tasks_and_novel_ones_all_others() -> None:
    labels = np.array([0, 0, 1, 2, 3, 3])  # tasks of two, one and one classes
    guesses = np.array([0, 1, 1, 2, 2, 3])
    found = metrics.evaluate_predictions(guesses[:, None], labels, guesses, np.array([0, 0, 1, 2]), task=2, known_classes=3)
    assert (found.base, found.novel) == (pytest.approx(200 / 3), pytest.approx(200 / 3))
    first = metrics.evaluate_predictions(guesses[:3, None], labels[:3], guesses[:3], np.array([0, 0, 1, 2]), task=0, known_classes=0)
    assert first.novel is None


def test_accuracy_at_any_time_is_the_area_under_the_measurements() -> None:
    points, every = [10.0, 30.0, 50.0, 20.0], 100
    area = np.cumsum(np.repeat(points, every))[-1]  # image by image; an accuracy stands for the images before it
    assert metrics.accuracy_at_any_time(points) == pytest.approx(area / (every * len(points)))
    assert metrics.accuracy_at_any_time([]) is None
