"""utils/data/index.py: the kept list of a large set is used while it is true, and only then."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import numpy as np
import pytest

from utils.data import index
from utils.data.domains import read_domains
from utils.data.entries import FolderFiles, entry_sets
from utils.data.folders import read_folders
from utils.data.index import indexed
from utils.data.photo_sets import food101_entries


@pytest.fixture(autouse=True)
def keeps_small_sets(monkeypatch):
    monkeypatch.setattr(index, "SMALLEST", 1)


def make(root: Path, names: list[str]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    settle(root)
    return root


def settle(root: Path) -> None:
    """As if all folders had been left alone for a minute."""
    old = time.time() - 60
    for path in (root, *root.rglob("*")):
        os.utime(path, (old, old))


def folders(root: Path):
    return lambda: read_folders(root / "train", root / "val")


def same(ours, theirs) -> bool:
    return ours[2] == theirs[2] and all(
        a.images == b.images and np.array_equal(a.labels, b.labels) and np.array_equal(a.domains, b.domains)
        for a, b in zip(ours[:2], theirs[:2], strict=True)) and ours[0].notes == theirs[0].notes


def unread():
    pytest.fail("the folders were listed again")


CLASSES = ["train/ant/1.jpg", "train/ant/2.JPG", "train/bee/a b.jpg", "train/bee/notes.txt", "val/ant/3.jpg", "val/bee/é.jpg"]


def test_a_kept_list_gives_the_same_images_labels_names_and_notes_without_listing(tmp_path):
    root = make(tmp_path / "set", CLASSES)
    first = indexed(root, tmp_path / "cache", "k", folders(root))
    assert len(list((tmp_path / "cache").glob("index-set-*.npz"))) == 1 and first[0].notes
    assert same(first, indexed(root, tmp_path / "cache", "k", unread))


@pytest.mark.parametrize("change", [
    lambda root: (root / "train/ant/new.jpg").write_bytes(b"x"), lambda root: (root / "val/bee/é.jpg").unlink(),
    lambda root: (root / "train/bee/notes.txt").rename(root / "train/bee/notes.jpg"),
    lambda root: make(root / "train/ant", ["inside/1.jpg"]), lambda root: (root / "train/bee").rename(root / "train/wasp")])
def test_any_file_that_comes_goes_or_is_renamed_makes_it_listed_anew(tmp_path, change):
    root, read = make(tmp_path / "set", CLASSES), []
    first = indexed(root, tmp_path / "cache", "k", folders(root))
    change(root)
    indexed(root, tmp_path / "cache", "k", lambda: read.append("again") or first)
    assert read == ["again"]


def test_a_changed_annotation_file_makes_it_listed_anew(tmp_path):
    root = make(tmp_path / "food", [f"images/pie/{i}.jpg" for i in range(3)])
    (root / "meta").mkdir()

    def lists(train: str, test: str):
        (root / "meta/train.json").write_text(train)
        (root / "meta/test.json").write_text(test)
        settle(root)

    def read():
        return entry_sets(food101_entries(FolderFiles(root)), root)
    lists('{"pie": ["pie/0", "pie/1"]}', '{"pie": ["pie/2"]}')
    indexed(root, tmp_path / "cache", "food", read)
    assert len(indexed(root, tmp_path / "cache", "food", unread)[0]) == 2
    lists('{"pie": ["pie/0"]}', '{"pie": ["pie/2"]}')
    assert len(indexed(root, tmp_path / "cache", "food", read)[0]) == 1


def test_domains_are_kept_too_and_a_list_file_is_looked_at(tmp_path):
    root = make(tmp_path / "domains", [f"{d}/ant/{i}.jpg" for d in ("real", "sketch") for i in range(3)])
    for domain in ("real", "sketch"):
        (root / f"{domain}_train.txt").write_text(f"{domain}/ant/0.jpg 0\n{domain}/ant/1.jpg 0\n")
        (root / f"{domain}_test.txt").write_text(f"{domain}/ant/2.jpg 0\n")
    settle(root)
    first = indexed(root, tmp_path / "cache", "k", lambda: read_domains(root, ["real", "sketch"], None))
    kept = indexed(root, tmp_path / "cache", "k", unread)
    assert same(first, kept) and kept[0].domains.tolist() == [0, 0, 1, 1]
    (root / "real_test.txt").write_text("real/ant/1.jpg 0\n")
    assert index._kept(next((tmp_path / "cache").glob("*.npz"))) is None


def test_a_folder_that_has_just_changed_is_not_trusted(tmp_path):
    root = make(tmp_path / "set", CLASSES)
    os.utime(root / "train/ant")
    indexed(root, tmp_path / "cache", "k", folders(root))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no npz at all"])
def test_a_damaged_list_is_told_and_made_again(tmp_path, caplog, content):
    root = make(tmp_path / "set", CLASSES)
    first = indexed(root, tmp_path / "cache", "k", folders(root))
    next((tmp_path / "cache").glob("*.npz")).write_bytes(content)
    with caplog.at_level(logging.WARNING, logger="slca"):
        assert same(first, indexed(root, tmp_path / "cache", "k", folders(root)))
    assert "cannot be read" in caplog.text and same(first, indexed(root, tmp_path / "cache", "k", unread))


def test_small_sets_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "SMALLEST", 50)
    root = make(tmp_path / "set", CLASSES)
    indexed(root, tmp_path / "cache", "k", folders(root))
    assert not (tmp_path / "cache").exists()
