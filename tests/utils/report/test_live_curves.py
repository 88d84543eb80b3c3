"""The curves of a page: which points there are, where, and what they say."""

from __future__ import annotations

import pytest

from tests.result_samples import make_result
from utils.report.live_curves import HEIGHT, LEFT, RIGHT, STRIP, WIDTH, live_curves, live_seeds


def test_a_point_says_method_task_and_value_and_the_best_run_is_listed_first() -> None:
    results = [make_result("finetune", "Seq FT", drop=9), make_result(drop=2)]
    live = live_curves(results, ["Seq FT", "SLCA"], "words")
    assert [line.label for line in live.lines] == ["SLCA", "Seq FT"] and [line.number for line in live.lines] == [1, 0]
    last = results[1].summary["last"]
    assert live.lines[0].points[-1].words == f"SLCA, after task 5 (10 classes): {last['mean']:.2f} ± {last['std']:.2f} %"
    assert [len(line.points) for line in live.lines] == [5, 5] and live.lines[0].last == f"{last['mean']:.2f} ± {last['std']:.2f}"


def test_everything_lies_inside_the_picture_and_higher_accuracies_lie_higher() -> None:
    live = live_curves([make_result(drop=30, first=100), make_result(drop=1, first=100)], ["low", "high"], "")
    points = [point for line in live.lines for point in line.points]
    assert all(LEFT <= point.x <= WIDTH - RIGHT and 0 <= point.y <= HEIGHT for point in points)
    assert live.lines[0].points[-1].y < live.lines[1].points[-1].y
    assert all(0 <= line.low <= line.dot <= line.high <= STRIP for line in live.lines)


def test_a_run_of_one_task_is_a_level_from_side_to_side() -> None:
    live = live_curves([make_result(), make_result("joint", "Joint", task_sizes=(10,))], ["SLCA", "Joint"], "")
    joint = next(line for line in live.lines if line.label == "Joint")
    assert len(joint.points) == 2 and joint.points[0].y == joint.points[1].y and joint.points[0].x < joint.points[1].x
    assert joint.dashes and "after task 1 (10 classes)" in joint.points[0].words


def test_a_task_without_test_images_has_no_point() -> None:
    result = make_result(seeds=(1,))
    result.seeds[0].top1_curve[1] = float("nan")
    assert len(live_curves([result], ["SLCA"], "").lines[0].points) == 4


def test_of_many_tasks_all_have_a_point_and_some_a_marker() -> None:
    points = live_curves([make_result(seeds=(1,), task_sizes=(1,) * 60, drop=1)], ["SLCA"], "").lines[0].points
    assert len(points) == 60 and sum(point.marked for point in points) == 10 and points[-1].marked


@pytest.mark.parametrize(("seeds", "lines"), [((1,), ["SLCA"]), ((3, 5), ["SLCA", "seed 3", "seed 5"])])
def test_a_runs_page_shows_its_mean_in_colour_and_each_of_several_seeds_in_grey(seeds: tuple[int, ...], lines: list[str]) -> None:
    live = live_seeds(make_result(seeds=seeds), "")
    assert sorted(line.label for line in live.lines) == lines
    assert {line.label for line in live.lines if line.colour == "grey"} == set(lines[1:])
