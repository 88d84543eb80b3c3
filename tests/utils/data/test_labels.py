"""utils/data/labels.py: which class a number or a name in the config means."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tests.utils.data.test_folders import save
from utils.config import Config, DatasetSpec
from utils.data.data_manager import DataManager
from utils.data.labels import class_labels, number_note
from utils.data.registry import load_dataset
from utils.errors import UserError

NUMBERS = sorted(map(str, range(12)))  # "0", "1", "10", "11", "2", ...


@pytest.mark.parametrize("names, given, labels", [
    (["ant", "bee", "cat"], [2, "ant"], [2, 0]),
    (NUMBERS, [2, 10, "11"], [4, 2, 3]),
    (["001", "002", "010"], [2, 10, "001"], [1, 2, 0]),
    (["-1", "0"], [0], [0]),  # "-1" is no class number, so names are names and 0 would be a place
    (["ant", "bee"], [7, -1], [7, -1]),  # places that do not exist: whoever asks says so
    (["caf\u00e9", "x"], ["cafe\u0301"], [0]),
])
def test_numbers_are_names_where_all_names_are_numbers_else_places(names, given, labels):
    if names == ["-1", "0"]:
        with pytest.raises(UserError, match="0 may be the class named '0' or the class at place 0, '-1'"):
            class_labels(given, names, "tasks")
    else:
        assert class_labels(given, names, "tasks") == labels


@pytest.mark.parametrize("names, given, words", [
    (NUMBERS, [2, 12, "x"], r"tasks: 12 is no class of the data set, allowed: 0, 1, 10, .*; 'x' is no class"),
    (["ant", "bee"], ["bees"], "'bees' is no class of the data set.*did you mean 'bee'"),
    (["10", "2", "ten"], [2], "2 may be the class named '2' or the class at place 2, 'ten'; write the class's name in quotes"),
    (["1", "01", "2"], [1], "1 is the name of 2 classes, 1, 01"),
    (["crane", "crane"], ["crane"], "'crane' is the name of 2 classes"),
])
def test_what_no_class_has_or_several_have_is_one_message(names, given, words):
    with pytest.raises(UserError, match=words):
        class_labels(given, names, "tasks")


def test_numbers_that_are_not_their_place_are_noted():
    assert "a number in classes, tasks or class_order means the name" in number_note(NUMBERS)[0]
    assert not number_note([str(i) for i in range(10)]) and not number_note(["a", "1"]) and not number_note([])


@pytest.fixture
def numbered(tmp_path) -> dict:
    for i in range(12):
        for j in range(2):
            save(tmp_path / str(i) / f"{j}.png", seed=2 * i + j)
    return {"name": "d", "root": str(tmp_path), "split": {}}


def classes_of(dataset: dict, **settings) -> list[str]:
    config = Config(model_name="ncm", convnet_type="none", epochs=1, num_workers=0, cache="none", dataset=dataset, **settings)
    data = DataManager(config, 1)
    assert [data.stream.class_names[c] for c in data.labels("train", 0)] == [p.parent.name for p in data._images.parts[0].train.images[
        data.task_indices("train", 0)]], "the images are those of the named folders"
    assert DataManager.plan(config, 1).class_order == data.stream.class_order, "a dry run means the same classes"
    return data.stream.class_names


def test_numbered_folders_are_meant_by_their_names_everywhere(numbered):
    train, _, names = load_dataset(DatasetSpec(**numbered, classes=[2, 10]))
    assert names == ["2", "10"] and {p.parent.name for p in train.images} == {"2", "10"}
    rest = [i for i in range(12) if i not in (7, 11)]
    assert classes_of(numbered, tasks=[[7, "11"], rest])[:3] == ["7", "11", "0"]
    order = list(range(11, -1, -1))
    assert classes_of({**numbered, "class_order": order}, init_cls=4, increment=4) == [str(i) for i in order]
    assert classes_of({**numbered, "classes": [10, 2, 3]}, tasks=[[3], [10, 2]]) == ["3", "10", "2"]
    assert classes_of({**numbered, "classes": [10, 2], "class_order": ["2", 10]}, init_cls=1, increment=1) == ["2", "10"]


def test_the_order_of_labels_stays_that_of_sorted_text(numbered):
    train, _, names = load_dataset(DatasetSpec(**numbered))
    assert names == NUMBERS and train.images[int(np.flatnonzero(train.labels == 2)[0])].parent.name == "10"
    assert any("sorted as text they are 0, 1, 10, 11, 2" in note for note in train.notes)


def test_a_listing_that_misses_names_says_which(numbered):
    with pytest.raises(UserError, match=re.escape("tasks: missing 11; allowed: each class (0, 1, 10, 11, 2, 3, 4, 5, ... (12 in all))")):
        classes_of(numbered, tasks=[list(range(11))])


def test_a_dry_run_without_the_data_takes_names_as_they_come(tmp_path: Path):
    config = Config(model_name="ncm", convnet_type="none", epochs=1, dataset={"name": "f", "root": "not/there", "num_classes": 3},
                    tasks=[["a", "b"], ["a"]])
    with pytest.raises(UserError, match="tasks: twice 0; missing 2"):
        DataManager.plan(config, 1)
