"""utils/data/duplicates.py: doubles are found, and looking for them stays cheap."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from utils.data import duplicates
from utils.data.duplicates import duplicate_notes
from utils.data.paths import Paths
from utils.data.types import ImageSet

HEAD = b"\xff\xd8 the same head in all files " * 20


def write(folder: Path, count: int, size: int = 20_000, seed: int = 0) -> ImageSet:
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:04}.jpg").write_bytes(HEAD + np.random.default_rng([seed, i]).bytes(size))
    return listed(folder)


def listed(folder: Path) -> ImageSet:
    files = sorted(folder.iterdir())
    return ImageSet(Paths.of(files), np.zeros(len(files), dtype=np.int64))


def bytes_read(monkeypatch) -> list[int]:
    """A list that takes the bytes of every read of the check."""
    counted: list[int] = []
    block, digest = duplicates._block, duplicates._digest
    monkeypatch.setattr(duplicates, "_block", lambda path, size: (counted.append(duplicates.BLOCK), block(path, size))[1])
    monkeypatch.setattr(duplicates, "_digest", lambda path, size: (counted.append(size), digest(path, size))[1])
    return counted


def test_a_double_is_found_among_files_of_one_size_and_head(tmp_path, monkeypatch):
    train, test = write(tmp_path / "train", 60), write(tmp_path / "test", 30, seed=1)
    assert duplicate_notes(train, test) == []
    shutil.copy(tmp_path / "train/0007.jpg", tmp_path / "test/0011.jpg")
    os.link(tmp_path / "train/0008.jpg", tmp_path / "test/zzzz.jpg")
    counted = bytes_read(monkeypatch)
    note, = duplicate_notes(train, listed(tmp_path / "test"))
    assert "2 of 31 test images are also training images" in note and "test/0011.jpg = " in note and "train/0007.jpg" in note
    assert sum(counted) < 0.1 * 90 * 20_000, "whole files are read for the two pairs only, though all have one size"


def test_equal_blocks_alone_are_no_double(tmp_path):
    train, test = write(tmp_path / "train", 1), write(tmp_path / "test", 1)
    data = bytearray((tmp_path / "test/0000.jpg").read_bytes())
    data[-1] ^= 1
    (tmp_path / "test/0000.jpg").write_bytes(data)
    assert duplicate_notes(train, test) == []


def test_of_many_test_images_some_are_looked_at_evenly_spread(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "SAMPLED", 10)
    train = write(tmp_path / "train", 40, size=10)
    shutil.copytree(tmp_path / "train", tmp_path / "test")
    note, = duplicate_notes(train, listed(tmp_path / "test"))
    assert "10 of 10 test images that were looked at (40 in all)" in note


def test_a_slow_disk_ends_the_check(tmp_path, monkeypatch, caplog):
    train = write(tmp_path / "train", 8, size=10)
    monkeypatch.setattr(duplicates, "EVERY", 2)
    monkeypatch.setattr(duplicates.time, "monotonic", iter(range(0, 10_000, 3)).__next__)  # three seconds between two looks at the clock
    with caplog.at_level("INFO", logger="slca"):
        duplicate_notes(train, train)
    assert "2 of 8, the disk is slow" in caplog.text


@pytest.mark.parametrize("environment, looks", [({}, True), ({"RANK": "0"}, True), ({"RANK": "3"}, False), ({"LOCAL_RANK": "1"}, False)])
def test_the_first_process_looks_for_all(tmp_path, monkeypatch, environment, looks):
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    train = write(tmp_path / "train", 2, size=10)
    assert bool(duplicate_notes(train, train)) == looks


def test_pipes_empty_files_and_files_that_are_gone_are_passed_over(tmp_path):
    train = write(tmp_path / "train", 2, size=10)
    os.mkfifo(tmp_path / "train/pipe.jpg")
    (tmp_path / "train/empty.jpg").touch()
    both = listed(tmp_path / "train")
    (tmp_path / "train/0001.jpg").unlink()
    assert "1 of 4 test images" in duplicate_notes(both, both)[0] and len(train) == 2
