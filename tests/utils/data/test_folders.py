"""utils/data/folders.py and utils/data/walk.py: folders as users have them; nothing is lost without a word."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.config import DatasetSpec
from utils.data.folders import image_files, split_set
from utils.data.notes import told_before
from utils.data.registry import dataset_info, load_dataset
from utils.data.types import ImageSet
from utils.data.walk import PassedOver, images_below
from utils.errors import UserError

NFC, NFD = "caf\u00e9", "cafe\u0301"


def save(path: Path, seed: int | None = None, **how) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(abs(hash(str(path))) if seed is None else seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **how)
    return path


@pytest.fixture
def root(tmp_path) -> Path:
    """Classes a and b of 4 images each."""
    for name in "ab":
        for i in range(4):
            save(tmp_path / "d" / name / f"{i}.png")
    return tmp_path / "d"


def load(root: Path, **spec) -> tuple[int, list[str], str]:
    """Number of images, class names, and all notes as one text."""
    train, test, names = load_dataset(DatasetSpec(name="d", root=str(root), **{"split": {}, **spec}))
    return len(train) + len(test), names, "\n".join(train.notes)


def message(root: Path, **spec) -> str:
    with pytest.raises(UserError) as error:
        load(root, **spec)
    return str(error.value)


# Kinds of files ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, kind", [("x.jfif", "JPEG"), ("x.JPE", "JPEG"), ("x.Jpeg", "JPEG"), ("x.webp", "WEBP"), ("x.pjpeg", "JPEG"),
                                        ("x.dib", "BMP"), ("x.tga", "TGA"), ("x.JP2", "JPEG2000"), ("x.pnm", "PPM"), ("x.apng", "PNG")])
def test_images_count_under_every_ending_that_they_have(root, name, kind):
    save(root / "a" / name, format=kind)
    assert load(root) == (9, ["a", "b"], "")


def test_files_of_other_kinds_are_told_once_with_their_number_and_the_first(root, caplog):
    for name in ("a/1.heic", "a/2.HEIC", "b/notes.txt", "b/no ending"):
        (root / name).write_bytes(b"x")
    with caplog.at_level(logging.WARNING, logger="slca"):
        count, _, notes = load(root)
    assert count == 8 and "4 files without an image's ending (2 .heic, 1 none, 1 .txt), the first is a/1.heic" in notes
    assert caplog.text.count("a/1.heic") == 1 and len(caplog.records) == 1 and caplog.records[0].name.startswith("slca")


def test_a_second_reading_by_the_same_command_is_silent_but_keeps_its_notes(root, caplog):
    (root / "a" / "1.heic").touch()
    with told_before(), caplog.at_level(logging.WARNING, logger="slca"):
        assert ".heic" in load(root)[2]
    assert not caplog.records


def test_hidden_and_system_files_and_folders_are_no_images_and_no_classes(root):
    for name in (".git/x.png", "__MACOSX/a/x.png", "a/.ipynb_checkpoints/0.png", "b/@eaDir/x.png", "$RECYCLE.BIN/x.png"):
        save(root / name)
    for name in ("a/Thumbs.db", "a/.DS_Store", "desktop.ini", "a/._0.png"):
        (root / name).touch()
    count, names, notes = load(root)
    assert (count, names) == (8, ["a", "b"]) and "9 hidden or system files or folders, the first is $RECYCLE.BIN" in notes
    assert dataset_info(DatasetSpec(name="d", root=str(root), split={})).class_names == ("a", "b")


def test_images_beside_the_class_folders_are_told(root):
    save(root / "lost.png")
    (root / "README.md").touch()
    assert load(root) == (8, ["a", "b"], f"passed over under {root}/: 1 image beside the class folders, lost.png")


def test_a_name_that_is_not_utf8_gives_a_note_that_can_be_written(root):
    try:
        (root / "a" / os.fsdecode(b"bad\xff.heic")).touch()
    except OSError:
        pytest.skip("this disk refuses such names")
    assert "bad\\udcff.heic" in load(root)[2].encode().decode()


# Links -------------------------------------------------------------------------------------------------------

def test_images_behind_links_count(root, tmp_path):
    for i in range(3):
        save(tmp_path / "else" / f"{i}.png", seed=i)
    os.symlink(tmp_path / "else", root / "a" / "more")
    os.symlink(tmp_path / "else", root / "c")
    os.symlink(tmp_path / "else" / "0.png", root / "b" / "linked.png")
    count, names, _ = load(root)
    assert (count, names) == (8 + 3 + 3 + 1, ["a", "b", "c"])


def test_cycles_of_links_end_and_are_told(root):
    os.symlink(root, root / "a" / "up")
    os.symlink(root.parent, root / "a" / "further_up")
    os.symlink(root / "b", root / "b" / "itself")
    os.symlink(root, root / "loop")
    assert load(root) == (8, ["a", "b"], f"passed over under {root}/: 4 links to folders that are read already, the first is loop")


def test_links_that_lead_nowhere_and_pipes_are_told(root):
    os.symlink("gone.png", root / "a" / "x.png")
    os.symlink("gone", root / "c")
    os.symlink("circle", root / "b" / "circle")
    os.mkfifo(root / "b" / "pipe.png")
    count, names, notes = load(root)
    assert (count, names) == (8, ["a", "b"]) and "3 links that lead nowhere, the first is c" in notes
    assert "1 pipe, socket or device, b/pipe.png" in notes


def test_two_names_of_one_class_folder_are_told(root):
    os.symlink(root / "b", root / "bee")
    assert "b and bee under" in load(root)[2] and "are one folder" in load(root)[2]


def test_a_folder_that_cannot_be_read_is_an_error_and_not_an_empty_one(root, monkeypatch):
    scandir = os.scandir

    def refuse(place):
        if str(place).endswith("secret"):
            raise PermissionError(13, "Permission denied")
        return scandir(place)
    (root / "a" / "secret").mkdir()
    monkeypatch.setattr(os, "scandir", refuse)
    assert "secret cannot be read (Permission denied)" in message(root)


# Wrong levels, empty and unknown classes ---------------------------------------------------------------------

def test_one_folder_level_too_many_names_what_was_found(root):
    (root.parent / "new" / "photos").parent.mkdir()
    os.rename(root, root.parent / "new" / "photos")
    told = message(root.parent / "new")
    assert "holds one class, photos, whose sub-folders a, b look like the classes" in told and str(root.parent / "new" / "photos") in told
    assert load(root.parent / "new", classes=["photos"])[:2] == (8, ["photos"])


def test_a_split_inside_a_further_folder_is_found(root):
    for part in ("train", "val"):
        save(root.parent / "new" / "set" / part / "a" / "0.png")
    told = message(root.parent / "new", split=None)
    assert f"is {root.parent / 'new' / 'set'} the" in told and "tried" in told and str(root.parent / "new" / "test") in told


def test_a_level_too_many_in_training_and_test_folder_is_told_for_both(root):
    for part in ("train", "val"):
        for name in "ab":
            save(root.parent / "n" / part / part / name / "0.png")
    told = message(root.parent / "n", split=None)
    assert str(root.parent / "n" / "train" / "train") in told and str(root.parent / "n" / "val" / "val") in told


def test_train_and_val_are_no_classes_unless_they_are_listed(root):
    for part in ("train", "val"):
        for name in "ab":
            save(root.parent / "n" / part / name / "0.png")
    assert "holds train, val, which look like training and test images" in message(root.parent / "n")
    assert load(root.parent / "n", classes=["train", "val"])[1] == ["train", "val"]


def test_a_class_folder_given_as_root_says_so(root):
    told = message(root / "a")
    assert "has no sub-folders but 4 image(s) itself" in told and str(root) in told


def test_classes_whose_images_all_lie_deeper_are_told(root):
    for name in "cd":
        save(root.parent / "n" / name / "2024" / "0.png")
        save(root.parent / "n" / name / "2025" / "1.png")
    count, names, notes = load(root.parent / "n")
    assert (count, names) == (4, ["c", "d"]) and "no class folder under" in notes and "c/2024/0.png" in notes


def test_all_problems_are_told_at_once(root):
    for part in ("train", "val"):
        save(root.parent / "n" / part / "a" / "0.png")
    (root.parent / "n/train/empty").mkdir()
    (root.parent / "n/train/heic").mkdir()
    (root.parent / "n/train/heic/0.heic").touch()
    save(root.parent / "n/val/aa/0.png")
    told = message(root.parent / "n", split=None)
    assert "2 class folders have no images" in told and "val/aa has no counterpart" in told and "is it 'a'?" in told


def test_empty_and_unknown_classes_do_no_harm_where_others_are_selected(root):
    (root / "empty").mkdir()
    assert "empty has no images" in message(root)
    count, names, notes = load(root, classes=["b"])
    assert (count, names) == (4, ["b"]) and "empty has no images" in notes
    assert "class 'empty' has no training image" in message(root, classes=["b", "empty"])


def test_val_beside_test_is_told(root):
    for part in ("train", "val", "test"):
        save(root.parent / "n" / part / "a" / f"{part}.png")
    assert "holds val/ and test/" in load(root.parent / "n", split=None)[2]


def test_keys_that_a_layout_does_not_use_are_told(root):
    notes = load(root, test="nowhere", num_classes=7)[2]
    assert '"test" is not used' in notes and '"num_classes": 7 is not used: the data have 2 classes' in notes


# Unicode -----------------------------------------------------------------------------------------------------

def two_spellings(folder: Path) -> None:
    (folder / NFC).mkdir(parents=True)
    try:
        (folder / NFD).mkdir()
    except FileExistsError:
        pytest.skip("this disk knows one spelling only")


def test_folders_that_differ_in_spelling_alone_are_one_class_and_told(root):
    two_spellings(root)
    save(root / NFC / "0.png")
    save(root / NFD / "1.png")
    count, names, notes = load(root)
    assert count == 10 and len(names) == 3 and "1 class(es)" in notes and "'caf\\xe9'" in notes and "'cafe\\u0301'" in notes


def test_a_test_folder_in_another_spelling_is_the_same_class(root):
    save(root.parent / "n" / "train" / NFC / "0.png")
    save(root.parent / "n" / "val" / NFD / "1.png")
    count, names, notes = load(root.parent / "n", split=None)
    assert count == 2 and names == [NFC] and "spelled otherwise in Unicode" in notes


@pytest.mark.parametrize("written", [NFC, NFD])
def test_the_config_may_use_either_spelling(root, written):
    save(root / NFD / "0.png")
    assert load(root, classes=[written, "a"])[1] == [NFD, "a"]
    os.rename(root, root.parent / NFD)
    assert load(root.parent / written)[0] == 9, "also for the root"


# Splitting ---------------------------------------------------------------------------------------------------

def test_a_split_draws_one_permutation_per_class_whatever_the_order_of_images():
    labels = np.array([2, 0, 2, 0, 0, 2, 2, 5])
    _, test = split_set(ImageSet(np.arange(8, dtype=np.uint8)[:, None, None, None], labels), 0.5, 3, [""] * 6)
    expected = []
    for label in (0, 2, 5):
        members = np.flatnonzero(labels == label)
        members = members[np.random.default_rng([3, label]).permutation(len(members))]
        expected += members[:min(round(0.5 * len(members)), len(members) - 1)].tolist()
    assert test.images.flatten().tolist() == sorted(expected)


def test_a_folder_to_predict_tells_what_it_passes_over(root, caplog):
    (root / "a" / "x.heic").touch()
    with caplog.at_level(logging.WARNING, logger="slca"):
        assert len(image_files(root)) == 8
    assert "1 file without an image's ending (1 .heic)" in caplog.text


def test_the_layout_training_has_images_and_no_tests(root):
    train, test, names = load_dataset(DatasetSpec(name="d", layout="training", root=str(root)))
    assert names == ["a", "b"] and len(train) == 8 and len(test) == 0
    assert "no test image at all" in " ".join(train.notes)


def test_a_folder_that_is_gone_since_it_was_listed_is_told(tmp_path):
    with pytest.raises(UserError, match="gone cannot be read"):
        list(images_below(tmp_path / "gone", PassedOver(tmp_path)))
