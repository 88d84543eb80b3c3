"""A wrong setting: the message lists all that is allowed, for every union."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from utils.config import Config, parse_config
from utils.errors import UserError
from utils.explain import words

VALID = {"model_name": "slca", "dataset": "cifar100_224", "init_cls": 10, "increment": 10, "convnet_type": "vit-b-p16", "epochs": 20}


def message(**change: Any) -> str:
    with pytest.raises(UserError) as error:
        parse_config({**VALID, **change}, source="c.json")
    return str(error.value)


@pytest.mark.parametrize(("change", "told"), [
    ({"num_workers": "4"}, "key 'num_workers': got '4', allowed: 'auto' or an integer from 0 to 256 (processes"),
    ({"num_workers": 300}, "got 300, allowed: 'auto' or an integer from 0 to 256"),
    ({"seed": ["1993"]}, "key 'seed': got ['1993'], allowed: an integer or a list of integers ("),
    ({"seed": "1993"}, "got '1993', allowed: an integer or a list of integers"),
    ({"device": {"gpu": 0}}, "got {'gpu': 0}, allowed: a text, an integer or a list of texts or integers"),
    ({"init_cls": "10"}, "got '10', allowed: an integer of at least 1 or null"),
    ({"init_cls": 0}, "got 0, allowed: an integer of at least 1 or null"),
    ({"pool": "max"}, "allowed: 'token', 'avg' or null"),
    ({"dataset": 3}, "got 3, allowed: a text or an object with the keys name, layout, root"),
    ({"convnet_type": None}, "got None, allowed: a text or an object with the keys timm, args, weights"),
    ({"tasks": [[1, None]]}, "key 'tasks.0.1': got None, allowed: an integer or a text"),
    ({"dataset": {"name": "d", "classes": [1.5]}}, "key 'dataset.classes.0': got 1.5, allowed: an integer or a text"),
    ({"dataset": {"name": "d", "split": 3}}, "key 'dataset.split': got 3, allowed: an object with the keys test_fraction, seed or null"),
    ({"dataset": {"name": "d", "train_transform": 3}}, "allowed: a text, a list of anything or null"),
])
def test_everything_that_a_union_allows_is_listed(change, told):
    assert told in message(**change)


def test_several_mistakes_inside_one_object_are_all_told():
    told = message(dataset={"name": "d", "rooot": "x", "image_size": "28"}, lr="0.1")
    assert "dataset.image_size" in told and "'dataset.rooot'; did you mean 'root'" in told and "key 'lr'" in told


def test_more_than_five_mistakes_are_counted():
    assert message(**{f"{name}x": 1 for name in ("lr", "seed", "epochs", "cache", "tasks", "drift", "kd")}).endswith("; and 2 more")


@pytest.mark.parametrize(("change", "told"), [
    ({"image_size": 32}, "unknown key 'image_size'; 'image_size' belongs inside the object 'dataset'"),
    ({"dataset.image_size": 32}, "write 'image_size' inside the object 'dataset'"),
    ({"dataset": {"name": "d", "epochs": 3}}, "'epochs' belongs outside of 'dataset', at the top level"),
])
def test_a_key_in_the_wrong_place_is_told_its_place(change, told):
    assert told in message(**change)


@pytest.mark.parametrize(("annotation", "said"), [
    (int | None, "an integer or null"),
    (Annotated[float, Field(gt=0, lt=1)], "a number above 0 and below 1"),
    (Annotated[int, Field(le=3)] | bool, "an integer at most 3 or true or false"),
    (list[Literal["a", "b"]], "a list of 'a' or 'b'"),
    (Annotated[list[list[int]], Field(min_length=1)] | None, "a non-empty list of lists of integers or null"),
    (dict[str, Any] | str, "an object or a text"),
])
def test_types_are_said_in_words(annotation, said):
    assert words(annotation) == said


def test_every_setting_of_a_config_can_be_said_in_words():
    for name, field in Config.model_fields.items():
        said = words(field.annotation, field.metadata)
        assert said and "typing" not in said and "<class" not in said, name
