"""The search: what is tried, ended early, and goes on after a stop."""

import json
from pathlib import Path

import pytest

from tests.utils.sweep.test_table import rows
from utils.errors import UserError
from utils.sweep.pictures import write_pictures
from utils.sweep.space import parse_space
from utils.sweep.study import Search, study_of, validation_so_far

pytest.importorskip("optuna")
SPACE = parse_space(['lr={"low":0.001,"high":0.1,"log":true}', 'epochs={"low":2,"high":8,"step":2}', "milestones=[[1],[2,3]]"])
FILES = [Path("a.json"), Path("b.json")]


def a_search(folder, storage=None):
    return Search(FILES, SPACE, folder, "s", storage)


def test_a_trial_tries_a_config_and_values_in_their_ranges(tmp_path):
    search = a_search(tmp_path)
    for _ in range(5):
        point = search.point(search.ask())
        assert point.file in FILES and 0.001 <= point.values["lr"] <= 0.1
        assert point.values["epochs"] in (2, 4, 6, 8) and point.values["milestones"] in ([1], [2, 3])


@pytest.mark.parametrize("storage", [None, "journal"])
def test_an_interrupted_search_goes_on_with_the_same_values_and_draws_new_ones(tmp_path, storage):
    url = None if storage is None else f"journal://{tmp_path / 'study.log'}"
    search = a_search(tmp_path, url)
    done, going = search.ask(), search.ask()
    points = [search.point(trial) for trial in (done, going)]
    search.tell(done, 50.0, "done")
    again = a_search(tmp_path, url)
    (continued,) = again.interrupted()
    assert again.point(continued) == points[1] and again.begun() == 2
    assert again.point(again.ask()).values["lr"] not in [point.values["lr"] for point in points]
    assert a_search(tmp_path / "..", url).interrupted() == [] if url else True  # another machine's trials are not taken over


def test_a_trial_below_the_median_at_the_same_task_is_ended(tmp_path):
    search = a_search(tmp_path)
    for _ in range(5):
        trial = search.ask()
        search.point(trial)
        assert not search.report(trial, [95.0, 80.0, 70.0])
        search.tell(trial, 70.0, "done")
    good, bad, worse = search.ask(), search.ask(), search.ask()
    assert not search.report(good, [90.0]) and not search.report(good, [90.0, 85.0])
    assert not search.report(worse, [10.0]) and search.report(bad, [99.0, 75.0])  # not by the first task alone, nor saved by it
    search.tell(bad, None, "pruned")
    assert bad.number not in [trial.number for trial in search.interrupted()]


def test_a_search_whose_first_trials_all_fail_is_given_up(tmp_path):
    search = a_search(tmp_path)
    for expected in (False, False, True):
        search.tell(search.ask(), None, "failed")
        assert search.hopeless() is expected


def test_a_storage_that_cannot_be_opened_is_told_without_its_password(tmp_path):
    with pytest.raises(UserError, match="--storage: nosuch://host cannot be opened") as told:
        a_search(tmp_path, "nosuch://user:secret@host/db")
    assert "secret" not in str(told.value)


def test_the_validation_accuracy_is_read_while_a_run_goes_on(tmp_path):
    for seed, values in ((3, [90.0, 80.0]), (1, [70.0])):
        file = tmp_path / f"seed{seed}" / "metrics.jsonl"
        file.parent.mkdir()
        file.write_text("".join(json.dumps({"kind": "task", "task": n + 1, "validation": value}) + "\n" for n, value in enumerate(values))
                        + '{"kind": "epoch", "task": 3, "epoch": 1}\n{"kind": "task", "ta')
    assert validation_so_far(tmp_path, [3, 1, 2]) == [90.0, 80.0, 70.0]


def test_optuna_draws_a_grid(tmp_path):
    pictures = write_pictures(tmp_path, study_of(rows()))
    assert [picture.name for picture in pictures] == ["parallel_coordinates.png", "importances.png"]
    assert all(picture.stat().st_size > 5000 and picture.with_suffix(".svg").exists() for picture in pictures)
    assert write_pictures(tmp_path, study_of(rows()[:1])) == []
