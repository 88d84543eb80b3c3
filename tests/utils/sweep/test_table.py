"""The table of a sweep."""

import csv
import json
from pathlib import Path

import pytest

from tests.result_samples import make_result
from utils.report.compare import load_entries
from utils.sweep.plan import Point
from utils.sweep.table import Row, finished_result, merged, write_table


def with_validation(values, seeds=(1, 2)):
    result = make_result(seeds=tuple(seeds))
    for seed, value in zip(result.seeds, values, strict=True):
        seed.validation_curve = [90.0] * 4 + [value]
    return merged([result])


def rows():
    file = Path("exps/x.json")
    return [Row(Point("a", file, {"lr": 0.1}), "done", with_validation([70.0, 72.0])),
            Row(Point("b", file, {"lr": [1, 2]}), "done", with_validation([80.0, 84.0])),
            Row(Point("c", file, {"lr": "x|y"}), "failed", None)]


def test_the_best_validation_accuracy_is_first_and_what_failed_last(tmp_path):
    text = write_table(tmp_path, rows())
    table = json.loads((tmp_path / "table.json").read_text())
    assert [row["point"] for row in table] == ["b", "a", "c"]
    assert table[0]["last_validation_mean"] == 82.0 and table[0]["values"] == {"lr": [1, 2]} and table[2]["last_mean"] is None
    with (tmp_path / "table.csv").open() as stream:
        assert [(row["point"], row["lr"], row["seeds"]) for row in csv.DictReader(stream)] == [
            ("b", "[1, 2]", "1 2"), ("a", "0.1", "1 2"), ("c", "x|y", "")]
    markdown = (tmp_path / "table.md").read_text()
    assert r"x\|y" in markdown and "82.00 ± 2.83" in markdown and "it alone chose" in markdown and "82.00 ± 2.83" in text


def test_runs_of_one_seed_each_are_the_same_result_as_one_run_of_all_seeds():
    whole = make_result(seeds=(1, 2, 3))
    parts = merged([make_result(seeds=(seed,)) for seed in (1, 2, 3)])
    assert parts.seeds == whole.seeds and parts.summary == whole.summary and parts.config["seed"] == [1, 2, 3]
    assert merged([]) is None


def test_points_can_be_compared_as_runs(tmp_path):
    write_table(tmp_path, rows())
    entries = load_entries([tmp_path / "points" / name for name in "ab"])
    assert [entry.result.summary["last_validation"]["mean"] for entry in entries] == [71.0, 82.0]


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_a_run_without_results_is_not_done(tmp_path, content):
    run = tmp_path / "runs" / "2026-01-01"
    run.mkdir(parents=True)
    (run / "run.json").write_text('{"finished": true}')
    if content is not None:
        (run / "results.json").write_text(content)
    assert finished_result(tmp_path / "runs") is None
