"""What every run measures beside accuracies, from a whole run."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from tests.run_files import only_run, tiny_config
from trainer import train


def seed_of(tmp_path, **settings: Any) -> dict[str, Any]:
    train(tiny_config(epochs=1, **settings), tmp_path, name="run")
    return json.loads((only_run(tmp_path / "run") / "results.json").read_text())["seeds"][0]


def test_a_run_of_a_method_that_aligns_measures_classes_confusions_calibration_and_times(tmp_path):
    seed = seed_of(tmp_path)
    assert [len(row) for row in seed["class_accuracies"]] == [2, 4, 5]
    assert sum(seed["class_accuracies"][-1]) / 5 == pytest.approx(seed["top1_curve"][-1])  # as many test images of every class
    assert set(seed["confusion"]) == {"before", "after"}
    assert [sum(row) for row in seed["confusion"]["after"]] == [8, 8, 4] == [sum(row) for row in seed["confusion"]["before"]]
    assert all(0 <= error <= 100 for error in seed["calibration_curve"])
    assert seed["task_images"] == [16, 16, 8]
    for stage, seconds in seed["stage_seconds"].items():
        assert sum(task[stage] for task in seed["task_seconds"]) == pytest.approx(seconds)
    assert {(span["task"], span["stage"]) for span in seed["timeline"]} == {
        (task, stage) for task in (1, 2, 3) for stage in ("train", "statistics", "alignment", "evaluation")} - {(1, "alignment")}


def test_a_method_that_does_not_align_has_one_confusion(tmp_path):
    assert set(seed_of(tmp_path, model_name="finetune")["confusion"]) == {"after"}


def test_the_log_says_after_each_task_how_long_the_rest_takes(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="slca"):
        train(tiny_config(epochs=1, model_name="ncm", seed=[1, 2]), tmp_path, name="run")
    told = [record.getMessage() for record in caplog.records if "left:" in record.getMessage()]
    assert [line.partition("left: ")[2] for line in told] == [
        "2 tasks, 1 more seeds", "1 tasks, 1 more seeds", "0 tasks, 1 more seeds", "2 tasks, 0 more seeds", "1 tasks, 0 more seeds"]
