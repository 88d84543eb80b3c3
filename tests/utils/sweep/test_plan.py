"""Points, runs, and which command is the same sweep."""

import json
from pathlib import Path

import pytest

from utils.errors import UserError
from utils.sweep.plan import default_folder, grid_points, remember_request, request_of, seed_runs


def test_points_have_names_of_their_own_that_are_plain_file_names():
    points = grid_points([Path("a/x.json"), Path("b/x.json")], [{"lr": 0.1, "args.name": "../e vil"}, {"lr": 0.1, "args.name": "y" * 400}])
    names = [point.name for point in points]
    assert len(set(names)) == 4 and names[0] == "x+lr-0.1+args.name-.._e_vil"
    assert all("/" not in name and " " not in name and len(name) < 130 for name in names)


def test_a_point_is_a_run_for_each_seed():
    (point,) = grid_points([Path("x.json")], [{"lr": 0.1}])
    runs = seed_runs(point, {"lr": 0.1, "seed": [5, 6]}, [5, 6])
    assert [(run.name, run.config) for run in runs] == [
        ("x+lr-0.1+seed-5", {"lr": 0.1, "seed": 5}), ("x+lr-0.1+seed-6", {"lr": 0.1, "seed": 6})]


def test_the_same_command_is_the_same_sweep_and_another_one_is_refused_its_folder(tmp_path):
    file = tmp_path / "x.json"
    file.write_text(json.dumps({"lr": 1}))
    request = request_of([file], ["a=[1,2]", "b=3"], [0], False)
    assert default_folder(request) == default_folder(request_of([file], ["b=3", "a=[1,2]"], [0], False))
    remember_request(tmp_path, request)
    remember_request(tmp_path, request)
    for other in (request_of([file], ["a=[1]", "b=3"], [0], False), request_of([file], ["a=[1,2]", "b=3"], [1], False)):
        assert default_folder(other) != default_folder(request)
        with pytest.raises(UserError, match="holds another sweep"):
            remember_request(tmp_path, other)
    file.write_text(json.dumps({"lr": 2}))
    assert default_folder(request_of([file], ["a=[1,2]", "b=3"], [0], False)) != default_folder(request)
