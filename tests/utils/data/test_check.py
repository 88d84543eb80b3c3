"""utils/data/check.py and the dry run: they find what a run finds, all at once, and say it once."""

from __future__ import annotations

import json

import numpy as np
import pytest

from main import main
from models.tools.dry_run import describe_run
from tests.support import make_config
from tests.test_main import TINY
from tests.utils.data.test_folders import save
from utils.data.check import check_data
from utils.data.data_manager import DataManager
from utils.errors import UserError


def run(tmp_path, capsys, dataset: dict, *arguments: str, **settings) -> tuple[int, str, str]:
    config = {**TINY, "seed": 1, "dataset": {"name": "d", "image_size": 16, **dataset}, "num_workers": 0, **settings}
    (tmp_path / "c.json").write_text(json.dumps(config))
    code = main(["--config", str(tmp_path / "c.json"), "--out", str(tmp_path / "logs"), *arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def make(tmp_path, classes=("a", "b"), images=4) -> dict:
    for name in classes:
        for i in range(images):
            save(tmp_path / "d" / name / f"{i}.png")
    return {"root": str(tmp_path / "d"), "split": {}}


def empty_class(folder):
    (folder / "empty").mkdir()


def only_heic(folder):
    (folder / "heic").mkdir()
    (folder / "heic/0.heic").touch()


@pytest.mark.parametrize("spoil", [empty_class, only_heic])
def test_a_dry_run_refuses_what_a_run_refuses_with_the_same_words(tmp_path, capsys, spoil):
    dataset = make(tmp_path)
    spoil(tmp_path / "d")
    told = [run(tmp_path, capsys, dataset, *how) for how in ((), ("--dry_run",))]
    assert told[0][0] == told[1][0] == 2 and "has no images" in told[0][2]
    assert told[0][2].strip() == told[1][2].strip(), "the same message"


@pytest.mark.parametrize("settings, words", [
    ({"tasks": [["a"], ["bb"]]}, "'bb' is no class of the data set"),
    ({"tasks": [[0], [7]]}, "unknown 7"),
    ({"init_cls": 5}, "init_cls: got 5, allowed: 1 to 2"),
])
def test_tasks_are_held_against_the_classes_that_are_there(tmp_path, capsys, settings, words):
    code, _, error = run(tmp_path, capsys, make(tmp_path), "--dry_run", **settings)
    assert code == 2 and words in error


def test_data_and_tasks_are_told_together(tmp_path, capsys):
    dataset = make(tmp_path)
    empty_class(tmp_path / "d")
    code, _, error = run(tmp_path, capsys, dataset, "--dry_run", init_cls=7)
    assert code == 2 and "empty has no images" in error and "init_cls: got 7, allowed: 1 to 3" in error


def test_notes_are_told_once_by_a_dry_run(tmp_path, caplog):
    dataset = make(tmp_path)
    (tmp_path / "d/a/x.heic").touch()
    save(tmp_path / "d/__MACOSX/x.png")
    from models.tools.timing import estimate_time
    config = make_config(dataset={"name": "d", "image_size": 16, **dataset}, init_cls=1, increment=1)
    text = describe_run(config)
    estimate_time(config)
    assert "2 classes in 2 tasks" in text and "6 training images" in text
    assert [record.message.count("x.heic") for record in caplog.records if "passed over" in record.message] == [1]


def test_a_dry_run_without_the_data_says_that_they_are_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = describe_run(make_config(dataset={"name": "d", "root": "photos", "num_classes": 4, "image_size": 16}))
    assert "an unknown number of training images" in text and "data, not on this machine" in text and str(tmp_path / "photos") in text
    with pytest.raises(UserError, match=r"photos.*add \"num_classes\""):
        describe_run(make_config(dataset={"name": "d", "root": "photos", "image_size": 16}))
    checked = check_data(make_config(dataset="imagenet-r", init_cls=20, increment=20, data_root=str(tmp_path)))
    assert checked.train_images == 24_000 and "prepare imagenet-r" in checked.missing


# What the run does with small or damaged sets ------------------------------------------------------------------

def test_a_validation_split_of_classes_of_one_image_is_empty_and_told(tmp_path, caplog):
    dataset = {"name": "d", "image_size": 16, "train": str(tmp_path / "d"), "test": str(tmp_path / "t")}
    for folder, images in (("d", 1), ("t", 2)):
        for name in "ab":
            for i in range(images):
                save(tmp_path / folder / name / f"{i}.png")
    data = DataManager(make_config(dataset=dataset, val_fraction=0.5, init_cls=1, increment=1), 1)
    assert data.count("val", [0, 1]) == 0 and data.count("train", [0, 1]) == 2
    assert "2 of 2 classes have one training image" in caplog.text and "there is no validation image at all" in data._images.notes[-1]
    save(tmp_path / "d/a/1.png")
    data = DataManager(make_config(dataset=dataset, val_fraction=0.5, init_cls=1, increment=1), 1)
    assert data.count("val", [0, 1]) == 1 and "1 of 2 classes have one training image" in data._images.notes[-1]


def test_a_set_without_a_test_image_says_what_that_means(tmp_path, caplog):
    data = DataManager(make_config(dataset={"name": "d", "image_size": 16, **make(tmp_path, images=1)}, init_cls=1, increment=1), 1)
    assert data.count("test", [0, 1]) == 0 and "no test image at all, so no accuracy can be measured" in caplog.text


@pytest.mark.parametrize("cache", ["none", "ram", "disk"])
def test_unreadable_images_are_left_out_with_a_note_and_all_of_them_are_an_error(tmp_path, monkeypatch, cache):
    monkeypatch.chdir(tmp_path)
    dataset = {"name": "d", "image_size": 16, "train": "d", "test": "t"}
    for folder in "dt":
        for name in "ab":
            for i in range(2):
                save(tmp_path / folder / name / f"{i}.png")
    (tmp_path / "t/b/1.png").write_text("no image")
    (tmp_path / "t/b/0.png").write_text("no image")
    settings = dict(dataset=dataset, bad_images="skip", cache=cache, init_cls=1, increment=1)
    data = DataManager(make_config(**settings), 1)
    notes = "\n".join(data._images.notes)
    assert "2 of 4 images of the split 'test' cannot be read and are left out, the first is t/b/0.png" in notes
    assert "class 'b' has no test image" in notes and data.count("test", [0, 1]) == 2
    for i in range(2):
        (tmp_path / f"t/a/{i}.png").write_text("no image")
    with pytest.raises(UserError, match=r"4 of 4 images of the split 'test' cannot be read.*t/a/0.png"):
        DataManager(make_config(**settings), 1)


def test_a_training_set_of_many_classes_is_split_for_validation_like_class_by_class():
    from utils.data.held_out import validation_members
    from utils.rng import numpy_generator
    labels = np.random.default_rng(0).integers(0, 20, 200)
    expected = []
    for label in range(20):
        members = np.flatnonzero(labels == label)
        count = min(max(1, round(0.3 * len(members))), len(members) - 1)
        expected += numpy_generator("validation", int(members[0])).permutation(members)[:count].tolist()
    assert validation_members(labels, 0.3).tolist() == sorted(expected)
