"""utils/data/annotations.py: benchmarks' small files with pieces missing; each mistake is one sentence."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.utils.data import official_copies as copies
from tests.utils.data.official_copies import matlab, picture, write
from tests.utils.data.test_prepare import cars_files, imagenet_r_files, small
from utils.data.registry import load_dataset
from utils.errors import UserError

__all__ = ["small"]  # a fixture


def message(name: str, root: Path) -> str:
    with pytest.raises(UserError) as error:
        load_dataset(name, str(root))
    return str(error.value)


@pytest.mark.parametrize("table, old, new, words", [
    ("image_class_labels", b"4 2\n", b"", "image_class_labels.txt has no line for 1 image number(s), the first is 4"),
    ("train_test_split", b"1 1\n", b"", "train_test_split.txt has no line for 1 image number(s), the first is 1"),
    ("classes", b"2 002.Auklet\n", b"", "classes.txt has no line for 1 class number(s), the first is 2"),
    ("train_test_split", b"1 1\n", b"1 yes\n", "got 'yes', allowed: 0 (test image) or 1 (training image)"),
    ("image_class_labels", b"4 2\n", b"4\n", "line 4: got '4', allowed: a number and a value"),
    ("images", b"4 002.Auklet/bird_0.png\n", b"4 002.Auklet/bird_0.png\n4 002.Auklet/bird_1.png\n", "the number 4 comes twice"),
    ("classes", b"2 002.Auklet\n", b"2 \xff\n", "classes.txt is not UTF-8 text"),
    ("images", b"4 002.Auklet/bird_0.png\n", b"4 ../../outside.png\n", "1 of 9 listed images are missing"),
])
def test_tables_of_cub_with_pieces_missing(tmp_path, small, table, old, new, words):
    small("cub200_224", 3, 6, 3)
    files = copies.cub("")
    assert old in files[f"{table}.txt"]
    files[f"{table}.txt"] = files[f"{table}.txt"].replace(old, new)
    write(tmp_path / "cub_200", files)
    assert words in message("cub200_224", tmp_path)


def test_images_that_no_list_names_are_told(tmp_path, small):
    small("cub200_224", 3, 6, 3)
    write(tmp_path / "cub_200", copies.cub() | {"CUB_200_2011/images/003.Wren/more.png": picture(77)})
    assert "1 images under" in load_dataset("cub200_224", str(tmp_path))[0].notes[0]


KIND = [("class", "i4"), ("fname", "O")]


@pytest.mark.parametrize("file, content, words", [
    ("devkit/cars_meta.mat", {"x": 1}, "'class_names' is missing, got x"),
    ("devkit/cars_train_annos.mat", {}, "'annotations' is missing, got nothing"),
    ("devkit/cars_train_annos.mat", {"annotations": np.arange(3)}, "the annotations have no 'fname', got no fields"),
    ("cars_test_annos_withlabels.mat", {"annotations": np.array([("00001.jpg",)], dtype=[("fname", "O")])}, "have no 'class', got fname"),
    ("devkit/cars_train_annos.mat", {"annotations": np.array([(9, "00001.jpg")], dtype=KIND)}, "got the class 9, allowed: 1 to 2"),
    ("devkit/cars_train_annos.mat", {"annotations": np.array([(0, "00001.jpg")], dtype=KIND)}, "got the class 0, allowed: 1 to 2"),
    ("devkit/cars_train_annos.mat", {"annotations": np.array([("x", "1.jpg")], dtype=[("class", "O"), ("fname", "O")])}, "got the row"),
])
def test_matlab_files_of_cars_with_pieces_missing(tmp_path, small, file, content, words):
    small("cars196_224", 2, 4, 2)
    write(tmp_path / "cars196", cars_files() | {file: matlab(content)})
    text = message("cars196_224", tmp_path)
    assert words in text and Path(file).name in text


def test_a_single_row_of_cars_is_a_row(tmp_path, small):
    small("cars196_224", 2, 4, 1)
    one = np.array([(1, "00001.jpg")], dtype=KIND)
    write(tmp_path / "cars196", cars_files() | {"cars_test_annos_withlabels.mat": matlab({"annotations": one})})
    train, test, _ = load_dataset("cars196_224", str(tmp_path))
    assert test.labels.tolist() == [0] and "00002.jpg" in train.notes[0]


@pytest.mark.parametrize("text", ["", "[]", "{", "1", '{"train": "abc", "test": "d"}', '{"train": [1], "test": []}', '{"train": []}',
                                  "[" * 100_000, '{"train": ' * 50_000, "\ufffe"])
def test_a_split_file_that_is_none_is_told(tmp_path, small, text):
    small("imagenet-r", 4, 16, 4)
    write(tmp_path, imagenet_r_files() | {"imagenet-r/split.json": text.encode("utf-16" if text == "\ufffe" else "utf-8")})
    assert "split.json is no split file" in message("imagenet-r", tmp_path)


def test_a_split_file_that_lists_an_image_twice_is_told(tmp_path, small):
    small("imagenet-r", 4, 16, 4)
    write(tmp_path, imagenet_r_files() | {"imagenet-r/split.json": b'{"train": ["n00/art_0.png", "n00/art_0.png"], "test": []}'})
    assert "n00/art_0.png is listed twice" in message("imagenet-r", tmp_path)


def test_classes_of_a_benchmark_may_be_links_and_cycles_end(tmp_path, small):
    small("resisc45", 2, 8, 2)
    write(tmp_path / "elsewhere", {f"beach/{i}.jpg": picture(i) for i in range(5)})
    write(tmp_path / "resisc45", {f"R/airport/{i}.jpg": picture(9 + i) for i in range(5)} | {"R/__MACOSX/airport/0.jpg": b"x"})
    os.symlink(tmp_path / "elsewhere" / "beach", tmp_path / "resisc45" / "R" / "beach")
    os.symlink(tmp_path / "resisc45", tmp_path / "resisc45" / "R" / "loop")
    train, test, names = load_dataset("resisc45", str(tmp_path))
    assert names == ["airport", "beach"] and (len(train), len(test)) == (8, 2)
