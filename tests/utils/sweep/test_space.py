"""What --set means in a sweep."""

import pytest

from utils.errors import UserError
from utils.sweep.space import Choice, Range, parse_space


def test_a_list_is_tried_an_object_with_low_and_high_is_a_range_and_the_rest_is_fixed():
    space = parse_space(["lr=[0.1,0.01]", 'wd={"low":1e-5,"high":0.1,"log":true}', "epochs=3", 'dataset={"name":"x"}',
                         "milestones=[[1],[2]]"])
    assert space.fixed == {"epochs": 3, "dataset": {"name": "x"}}
    assert space.axes == {"lr": Choice((0.1, 0.01)), "wd": Range(1e-5, 0.1, None, True), "milestones": Choice(([1], [2]))}


def test_a_grid_is_every_combination_and_the_last_setting_runs_fastest():
    assert parse_space(["a=[1,2]", 'b=["x","y"]']).grid() == [
        {"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"}]
    assert parse_space(["epochs=3"]).grid() == [{}]


def test_every_value_and_both_ends_of_a_range_are_checked_once():
    assert list(parse_space(["a=[1,2,3]", 'b={"low":5,"high":9}']).ends()) == [
        {"a": 1, "b": 5}, {"a": 2, "b": 5}, {"a": 3, "b": 5}, {"a": 1, "b": 9}]


@pytest.mark.parametrize(("word", "told"), [
    ("lr=[]", "one or more different values"), ("lr=[0.1,0.1]", "one or more different values"), ("seed=[1,2]", "--seeds 0 1 2"),
    ('lr={"low":1,"high":1}', "low is below high"), ('lr={"low":2,"high":1}', "low is below high"),
    ('lr={"low":0,"high":1,"log":true}', "log needs"),
    ('lr={"low":0,"high":1,"step":2}', "at most their difference"), ('lr={"low":"0","high":1}', "finite numbers"),
    ('lr={"low":true,"high":2}', "finite numbers"), ('lr={"low":0,"high":1,"q":1}', "it has no q"), ("lr", "expected key=value")])
def test_values_that_cannot_be_tried_are_told(word, told):
    with pytest.raises(UserError, match=told):
        parse_space([word])


def test_a_range_in_a_grid_is_told():
    with pytest.raises(UserError, match="--search N"):
        parse_space(['lr={"low":0.1,"high":1}']).grid()
