"""utils/data/places.py: where a path of the config is looked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.utils.data.test_folders import save
from utils.config import DatasetSpec
from utils.data.places import find_place
from utils.data.registry import load_dataset
from utils.data.types import DataMissing
from utils.errors import UserError
from utils.files import PROJECT


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(**spec):
    return load_dataset(DatasetSpec(name="d", **spec))


def test_train_and_test_are_looked_for_under_root_then_here_then_in_the_project(here):
    for part in ("d/train", "d/eval", "train"):
        save(here / part / "a" / "0.png")
    train, _test, _ = load(root="d", train="train", test="eval")
    assert train.images[0].resolve() == here / "d/train/a/0.png"
    assert any('"train"' in note and str(here / "train") in note for note in train.notes), "the other one is told"
    assert load(root="d", train="d/train", test="d/eval")[0].images[0].resolve() == here / "d/train/a/0.png"
    assert load(train="train", test="d/eval")[0].images[0].resolve() == here / "train/a/0.png"
    assert find_place("README.md").path.resolve() == PROJECT / "README.md"


def test_lists_are_looked_for_under_root_too(here):
    save(here / "d/images/0.png")
    (here / "d/train.txt").write_text("images/0.png a\n")
    (here / "test.txt").write_text("images/0.png a\n")
    assert len(load(layout="lists", root="d", train="train.txt", test="test.txt")[1]) == 1


def test_the_home_sign_works_for_every_path(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here / "home"))
    monkeypatch.setenv("USERPROFILE", str(here / "home"))
    for part in ("train", "val"):
        save(here / "home/photos" / part / "a/0.png")
    assert load(root="~/photos")[0].images[0] == here / "home/photos/train/a/0.png"
    assert len(load(train="~/photos/train", test="~/photos/val")[1]) == 1
    save(here / "home/benchmarks/imagenet100/train/a/0.png")
    save(here / "home/benchmarks/imagenet100/val/a/0.png")
    with pytest.raises(UserError, match="found 1 classes under imagenet100, expected 100"):
        load_dataset("imagenet100", "~/benchmarks")


@pytest.mark.parametrize("spec", [
    {"root": "gone"}, {"root": "gone", "split": {}}, {"root": "gone.npz", "layout": "npz"}, {"root": "gone", "layout": "domains"},
    {"root": "gone", "train": "a.txt", "test": "b.txt", "layout": "lists"}, {"train": "gone", "test": "gone2"},
])
def test_data_that_are_not_there_name_every_absolute_place_that_was_tried(here, spec):
    with pytest.raises(DataMissing) as error:
        load(**spec)
    name = spec.get("train") or spec["root"]
    assert str(here / name) in str(error.value) and (name == "a.txt" or str(PROJECT / name) in str(error.value))


def test_a_missing_part_of_data_that_are_there_is_no_missing_data_set(here):
    save(here / "d/train/a/0.png")
    save(here / "d/validation/a/0.png")
    with pytest.raises(UserError) as error:
        load(root="d")
    assert not isinstance(error.value, DataMissing) and "holds the folders train, validation" in str(error.value)
    assert f'no folder for "test", tried {here / "d/val"}, {here / "d/test"}' in str(error.value)
    with pytest.raises(UserError) as error:
        load(root="d", train="train", test="eval")
    assert all(str(place / "eval") in str(error.value) for place in (here / "d", here, PROJECT))


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "~nobody-of-this-name/x", ""])
def test_names_that_no_system_takes_are_one_message(here, name):
    for spec in ({"root": name}, {"root": name, "split": {}}, {"root": name, "layout": "npz"}, {"root": name, "layout": "domains"},
                 {"train": name, "test": name, "layout": "lists"}, {"train": name, "test": name}):
        with pytest.raises(UserError):
            load(**spec)


def test_paths_found_here_stay_as_they_are_written(here):
    save(here / "d/train/a/0.png")
    save(here / "d/val/a/0.png")
    assert os.fspath(load(root="d")[0].images[0]) == os.path.join("d", "train", "a", "0.png")
