"""utils/data/lists.py and the rest of the layouts' checks: list files, domains, duplicates."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.config import DatasetSpec
from utils.data.registry import dataset_info, load_dataset
from utils.errors import UserError


def save_image(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)).save(path)
    return path


def message(**spec) -> str:
    with pytest.raises(UserError) as error:
        load_dataset(DatasetSpec(name="mine", **spec))
    return str(error.value)


def make_lists(root: Path, train: str, test: str | None) -> dict:
    for i in range(6):
        save_image(root / "images" / f"photo {i}.png", i)
    (root / "train.txt").write_text(train)
    if test is not None:
        (root / "test.txt").write_text(test)
    return {"layout": "lists", "train": str(root / "train.txt"), **({"test": str(root / "test.txt")} if test is not None else {})}


def test_lists_take_names_or_numbers_and_paths_with_spaces(tmp_path):
    named = make_lists(tmp_path, "# path label\nimages/photo 0.png zebra\n\nimages/photo 1.png ant\n",
                       "images/photo 2.png\tant\nimages/photo 3.png zebra\n")
    train, test, names = load_dataset(DatasetSpec(name="l", **named))
    assert names == ["ant", "zebra"] and train.labels.tolist() == [1, 0] and test.labels.tolist() == [0, 1]
    numbered = make_lists(tmp_path, "images/photo 0.png 1\nimages/photo 1.png 0\n", "images/photo 2.png 0\nimages/photo 3.png 1\n")
    train, _, names = load_dataset(DatasetSpec(name="l", **numbered))
    assert names == ["0", "1"] and train.labels.tolist() == [1, 0]
    assert dataset_info(DatasetSpec(name="l", **numbered)).num_classes == 2


def test_numbered_classes_are_called_after_their_folders(tmp_path):
    for i, name in enumerate(["cat", "cat", "Ant", "Ant"]):
        save_image(tmp_path / name / f"{i}.png", i)
    (tmp_path / "all.txt").write_text("cat/0.png 0\ncat/1.png 0\nAnt/2.png 1\nAnt/3.png 1\n")
    train, test, names = load_dataset(DatasetSpec(name="l", layout="lists", train=str(tmp_path / "all.txt"), split={"test_fraction": 0.5}))
    assert names == ["cat", "Ant"] and len(train) == len(test) == 2


def test_list_paths_are_relative_to_the_list_or_to_root(tmp_path):
    make_lists(tmp_path, "photo 0.png 0\n", "photo 1.png 0\n")
    spec = {"layout": "lists", "train": str(tmp_path / "train.txt"), "test": str(tmp_path / "test.txt")}
    assert "train.txt, line 1: image" in message(**spec) and "paths are relative to" in message(**spec)
    assert len(load_dataset(DatasetSpec(name="l", root=str(tmp_path / "images"), **spec))[0]) == 1


def test_mistakes_in_lists_are_one_clear_message_each(tmp_path):
    assert "needs \"train\" and \"test\"" in message(layout="lists", train="x.txt")
    assert "nowhere.txt cannot be read" in message(layout="lists", train="nowhere.txt", test="nowhere.txt")
    assert "names no image" in message(**make_lists(tmp_path, "# nothing\n", "images/photo 0.png 0"))
    assert "line 2: got 'photo1.png'" in message(**make_lists(tmp_path, "images/photo 0.png 0\nphoto1.png\n", "images/photo 0.png 0"))
    assert "line 1: image" in message(**make_lists(tmp_path, "images/gone.png 0\n", "images/photo 0.png 0"))
    assert "the label -1" in message(**make_lists(tmp_path, "images/photo 0.png -1\n", "images/photo 0.png 0"))
    assert "the label 999" in message(**make_lists(tmp_path, "images/photo 0.png 999\n", "images/photo 1.png 0"))
    assert "class '0' has no training image" in message(**make_lists(tmp_path, "images/photo 0.png 1\n", "images/photo 1.png 0"))


@pytest.mark.parametrize("label", ["--1", "-", "1.0", "1e3", "+1", "²", "9" * 5000])
def test_labels_that_are_no_class_numbers_are_names(tmp_path, label):
    lists = make_lists(tmp_path, f"images/photo 0.png {label}\nimages/photo 1.png 0\n", f"images/photo 2.png {label}\n")
    spec = DatasetSpec(name="l", **lists)
    train, _, names = load_dataset(spec)
    assert sorted(names) == sorted([label, "0"]) and "are names and numbers, so all are taken as names" in train.notes[0]
    assert dataset_info(spec).class_names == tuple(names)


@pytest.mark.parametrize("highest", [10**6, 10**12, 10**17])
def test_numbers_far_above_the_images_are_refused_at_once(tmp_path, highest):
    text = message(**make_lists(tmp_path, f"images/photo 0.png 0\nimages/photo 1.png {highest}\n", "images/photo 2.png 0\n"))
    assert f"got the label {highest}, allowed: class numbers from 0 to 39, or names" in text


def test_all_wrong_lines_are_told_at_once_in_both_lists(tmp_path):
    text = message(**make_lists(tmp_path, "images/gone.png 0\nimages/photo\nimages/photo 1.png 0\n", "images/lost.png 0\n"))
    assert "line 1: image" in text and "line 2: got 'images/photo'" in text and "lost.png does not exist" in text
    many = "".join(f"images/gone{i}.png 0\n" for i in range(9))
    assert "and 6 more lines" in message(**make_lists(tmp_path, many, "images/photo 0.png 0\n"))


def test_a_listed_pipe_folder_or_dangling_link_is_no_image(tmp_path):
    spec = make_lists(tmp_path, "images/photo 0.png 0\n", "images/odd.png 0\n")
    for make in (os.mkfifo, os.mkdir, lambda path: os.symlink("nowhere", path)):
        odd = tmp_path / "images" / "odd.png"
        make(odd)
        assert "odd.png is no file" in message(**spec)
        os.rmdir(odd) if odd.is_dir() else odd.unlink()
    os.symlink(tmp_path / "images" / "photo 1.png", tmp_path / "images" / "odd.png")
    assert len(load_dataset(DatasetSpec(name="l", **spec))[1]) == 1, "a link to an image is an image"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_list_that_is_no_file_is_told_and_not_waited_for(tmp_path, make):
    spec = make_lists(tmp_path, "images/photo 0.png 0\n", None)
    make(tmp_path / "test.txt")
    assert "test.txt cannot be read (it is a" in message(**{**spec, "test": str(tmp_path / "test.txt")})


def test_lists_of_other_systems_are_read_and_said(tmp_path):
    spec = make_lists(tmp_path, "", "")
    save_image(tmp_path / "images" / "cafe\u0301" / "0.png", 9)
    (tmp_path / "train.txt").write_bytes("\ufeffimages\\photo 0.png 0\r\nimages/caf\u00e9/0.png 1\r\n".encode())
    (tmp_path / "test.txt").write_text("images/photo 1.png 0\n")
    train, _, _ = load_dataset(DatasetSpec(name="l", **spec))
    assert [p.name for p in train.images] == ["photo 0.png", "0.png"] and all(p.is_file() for p in train.images)
    notes = "\n".join(train.notes)
    assert "1 paths of" in notes and "read with / for \\" in notes and "1 images of" in notes and "spelled otherwise in Unicode" in notes
    (tmp_path / "train.txt").write_bytes("images/photo 0.png caf\u00e9\n".encode("latin-1"))
    assert "it is not UTF-8 text" in message(**spec) and "saved as UTF-8" in message(**spec)


def test_numbered_folders_name_classes_only_where_they_agree_with_the_labels(tmp_path):
    for i, name in enumerate(["2", "10"]):
        save_image(tmp_path / name / "0.png", i)
    (tmp_path / "train.txt").write_text("2/0.png 0\n10/0.png 1\n")
    spec = DatasetSpec(name="l", layout="lists", root=str(tmp_path), train="train.txt", test="train.txt", classes=[1])
    train, _, names = load_dataset(spec)
    assert names == ["1"] and train.images[0].parent.name == "10", "the list's numbers are the classes' numbers"


def make_domains(root: Path, domains: tuple[str, ...] = ("photo", "art"), split: bool = True) -> Path:
    for d, domain in enumerate(domains):
        for c, name in enumerate(("ant", "bee")):
            for i in range(4):
                part = "" if not split else "train" if i < 3 else "val"
                save_image(root / domain / part / name / f"{i}.png", 100 * d + 10 * c + i)
    return root


@pytest.mark.parametrize("split", [True, False])
def test_one_folder_per_domain_gives_the_domain_of_every_image(tmp_path, split):
    root = make_domains(tmp_path, split=split)
    spec = DatasetSpec(name="d", layout="domains", root=str(root), split=None if split else {"test_fraction": 0.25})
    train, test, names = load_dataset(spec)
    assert names == ["ant", "bee"] and dataset_info(spec).domains == ("art", "photo") and dataset_info(spec).num_classes == 2
    assert train.labels.tolist() == [0] * 3 + [1] * 3 + [0] * 3 + [1] * 3 and train.domains.tolist() == [0] * 6 + [1] * 6
    assert all(path.relative_to(root).parts[0] == ("art", "photo")[d] for path, d in zip(test.images, test.domains, strict=True))


def test_listed_domains_come_in_the_listed_order(tmp_path):
    spec = DatasetSpec(name="d", layout="domains", root=str(make_domains(tmp_path)), domains=["photo", "art"])
    train, _, _ = load_dataset(spec)
    assert train.images[0].relative_to(tmp_path).parts[0] == "photo" and dataset_info(spec).fixed_domain_order


def test_a_class_that_a_domain_lacks_is_warned_about(tmp_path, caplog):
    root = make_domains(tmp_path)
    save_image(root / "art" / "train" / "cat" / "0.png", 7)
    with caplog.at_level(logging.WARNING, logger="slca"):
        _, _, names = load_dataset(DatasetSpec(name="d", layout="domains", root=str(root)))
    assert names == ["ant", "bee", "cat"] and "1 of 6 pairs of a domain and a class have no training image" in caplog.text


def test_mistakes_in_domains_are_one_clear_message_each(tmp_path):
    root = str(make_domains(tmp_path / "d"))
    assert "has no domains" in message(layout="domains", root=str(tmp_path / "nowhere"))
    assert "'artt' is not under" in message(layout="domains", root=root, domains=["artt"])
    flat = str(make_domains(tmp_path / "flat", split=False))
    assert 'folder of classes per domain add "split"' in message(layout="domains", root=flat)
    with pytest.raises(UserError, match="the layout 'folders' has no domains"):
        dataset_info(DatasetSpec(name="d", root=root, domains=["art"]))
    (tmp_path / "d" / "art_train.txt").write_text("art/train/ant/0.png 0\n")
    assert "art_test.txt cannot be read" in message(layout="domains", root=root)


def test_test_images_that_are_also_trained_on_are_warned_about(tmp_path, caplog):
    for i, path in enumerate(("train/a/0.png", "train/a/1.png", "val/a/2.png", "val/a/3.png")):
        save_image(tmp_path / path, i % 3)
    spec = DatasetSpec(name="d", root=str(tmp_path))
    with caplog.at_level(logging.WARNING, logger="slca"):
        load_dataset(spec)
    assert "1 of 2 test images are also training images" in caplog.text and "val/a/3.png" in caplog.text


def test_domains_without_their_folders_are_told_all_at_once(tmp_path):
    root = make_domains(tmp_path, ("art", "photo", "sketch"))
    for domain in ("art", "sketch"):
        (root / domain / "train" / "empty").mkdir()
    text = message(layout="domains", root=str(root))
    assert "art/train/empty has no images" in text and "sketch/train/empty has no images" in text
    for domain in ("art", "sketch"):
        (root / domain / "val").rename(root / domain / "validation")
    assert "art (and sketch too) needs train/ and val/ or test/" in message(layout="domains", root=str(root))
    assert "'x', 'y' is not under" in message(layout="domains", root=str(root), domains=["art", "x", "y"])


def test_a_class_that_two_domains_spell_differently_is_one(tmp_path):
    for i, (domain, name) in enumerate((("art", "caf\u00e9"), ("photo", "cafe\u0301"))):
        for part in ("train", "val"):
            save_image(tmp_path / domain / part / name / f"{i}.png", i)
    spec = DatasetSpec(name="d", layout="domains", root=str(tmp_path))
    train, test, names = load_dataset(spec)
    assert len(names) == 1 and train.labels.tolist() == test.labels.tolist() == [0, 0]
    assert dataset_info(spec).num_classes == 1 and any("spelled otherwise in Unicode" in note for note in train.notes)


def test_what_domains_pass_over_is_told_once_for_all_of_them(tmp_path):
    root = make_domains(tmp_path)
    for name in ("art/train/ant/0.heic", "photo/val/bee/1.heic", ".hidden/x.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    notes = load_dataset(DatasetSpec(name="d", layout="domains", root=str(root)))[0].notes
    assert len(notes) == 1 and "2 files without an image's ending (2 .heic), the first is art/train/ant/0.heic" in notes[0]
    assert "1 hidden or system file or folder, .hidden" in notes[0]
