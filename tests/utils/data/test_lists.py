"""utils/data/lists.py and the rest of the layouts' checks: list files, domains, duplicates."""

from __future__ import annotations

import logging
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
