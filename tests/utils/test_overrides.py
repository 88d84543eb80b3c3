"""--set key=value, also inside an object."""

import pytest

from utils.errors import UserError
from utils.overrides import parse_overrides, with_overrides


def test_a_dot_reaches_into_an_object_and_leaves_the_rest_and_the_original():
    values = {"dataset": {"name": "d", "image_size": 28, "split": {"seed": 1}}, "lr": 1}
    found = with_overrides(values, parse_overrides(["dataset.image_size=32", "dataset.split.seed=2", "lr=0.5"]))
    assert found == {"dataset": {"name": "d", "image_size": 32, "split": {"seed": 2}}, "lr": 0.5}
    assert values["dataset"]["image_size"] == 28 and values["dataset"]["split"] == {"seed": 1}


def test_an_object_that_is_missing_or_null_is_made_and_order_counts():
    assert with_overrides({"a": None}, {"a.b": 1, "c.d.e": 2}) == {"a": {"b": 1}, "c": {"d": {"e": 2}}}
    assert with_overrides({}, parse_overrides(['a={"b": 1}', "a.c=2"])) == {"a": {"b": 1, "c": 2}}


@pytest.mark.parametrize("inside", ["cifar100", 3, [1]])
def test_what_is_no_object_has_no_keys(inside):
    with pytest.raises(UserError, match=r"--set dataset.image_size: dataset is .* which has no keys; set it whole"):
        with_overrides({"dataset": inside}, {"dataset.image_size": 32})


@pytest.mark.parametrize("text", ["epochs", "=3", ".a=1", "a.=1", "a..b=1"])
def test_an_assignment_without_a_key_or_a_value_is_told(text):
    with pytest.raises(UserError, match="expected key=value"):
        parse_overrides([text])
