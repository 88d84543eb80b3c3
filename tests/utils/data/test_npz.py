"""utils/data/npz.py: files that lie, that are too large, or that hold other things than arrays."""

from __future__ import annotations

import io
import os
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.utils.data.test_registry import message, save_npz
from utils.config import DatasetSpec
from utils.data.registry import dataset_info, load_dataset


def told(path: Path) -> str:
    """What loading says; what is known beforehand (a dry run) must say the same."""
    spec = DatasetSpec(name="a", layout="npz", root=str(path))
    text = message(load_dataset, spec)
    assert message(dataset_info, spec) == text and path.name in text
    return text


@pytest.mark.parametrize("label", [190, 30_000_000, 10**12, 2**62, np.uint64(2**63 + 5)])
def test_labels_are_bounded_by_the_number_of_images(tmp_path, label):
    labels = np.array([0, 1, 2] * 4, dtype=np.asarray(label).dtype)
    labels[-1] = label
    path = save_npz(tmp_path / "a.npz", y_train=labels)
    start = time.perf_counter()
    text = told(path)
    assert time.perf_counter() - start < 2
    assert f"y_train has the label {label}, allowed: class numbers from 0 to 189 for 18 images" in text


def test_labels_of_a_few_test_images_may_be_as_high_as_the_training_sets(tmp_path):
    pixels = np.zeros((2000, 2, 2), np.uint8)
    path = save_npz(tmp_path / "a.npz", x_train=pixels, y_train=np.arange(2000), x_test=pixels[:2], y_test=np.array([5, 1999]))
    assert len(load_dataset(DatasetSpec(name="a", layout="npz", root=str(path)))[2]) == 2000


@pytest.mark.parametrize("key", ["classes", "class_names"])
@pytest.mark.parametrize("names", [np.array(["x", "é", "z"]), np.array([b"x", "é".encode(), b"z"])])
def test_names_may_be_text_or_bytes_under_either_key(tmp_path, key, names):
    spec = DatasetSpec(name="a", layout="npz", root=str(save_npz(tmp_path / "a.npz", **{key: names})))
    assert load_dataset(spec)[2] == ["x", "é", "z"] == list(dataset_info(spec).class_names)
    assert dataset_info(spec.model_copy(update={"classes": ["é", 0]})).class_names == ("é", "x")


@pytest.mark.parametrize("names, words", [
    (np.array(["x", None, {}], dtype=object), "holds Python objects"),
    (np.array("x"), "class_names is <U1 of shape (), allowed: (K,) text"),
    (np.array([["x", "y", "z"]]), "of shape (1, 3)"),
    (np.array([b"\xff", b"a", b"b"]), "bytes that are not UTF-8"),
    (np.array([1.5, 2, 3]), "class_names is float64"),
    (np.array(["x", "y", "x"]), "class_names has 'x' more than once; each class needs a name of its own"),
    (np.array(["x", "y"]), "class_names has 2 names, but the labels go up to 2"),
    (np.array(["x"] * 500), "class_names has 500 names for 18 images"),
])
def test_names_that_are_none_are_one_message(tmp_path, names, words):
    assert words in told(save_npz(tmp_path / "a.npz", class_names=names))


def with_array(path: Path, key: str, data: bytes) -> Path:
    """The file `path` with other bytes as one of its arrays."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members[f"{key}.npy"] = data
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def npy(header: str, data: bytes, version: bytes = b"\x01\x00") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2 if version == b"\x01\x00" else 4, "little") + text + data


@pytest.mark.parametrize("header", [
    "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 8, 8, 3), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (4294967296, 4294967296, 4294967296, 3), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 8, 8, 3), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (-12, 8, 8, 3), }",
    "{'descr': '<i8', 'fortran_order': False, 'shape': (12, 8, 8, 3), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (12, 8, 8, 3), }",
    "{'descr': 'nothing', 'fortran_order': False, 'shape': (12, 8, 8, 3), }",
    "{'descr': '|u1', 'shape': (12, 8, 8, 3), }",
    "(" * 9000, "[" * 200 + "]" * 200, "__import__('os').abort()", "{1: 2}", "",
])
@pytest.mark.parametrize("key", ["x_train", "y_test"])
def test_a_header_that_lies_is_told_without_reserving_what_it_asks_for(tmp_path, header, key):
    told(with_array(save_npz(tmp_path / "a.npz"), key, npy(header, bytes(12 * 8 * 8 * 3))))


@pytest.mark.parametrize("data", [b"", b"hello", b"\x93NUMPY\x09\x00" + b"x" * 50, npy("{}", b"")[:7]])
def test_what_is_no_array_is_told(tmp_path, data):
    told(with_array(save_npz(tmp_path / "a.npz"), "x_train", data))


def test_arrays_of_newer_versions_of_the_format_are_read(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    for version in (b"\x02\x00", b"\x03\x00"):
        header = "{'descr': '|u1', 'fortran_order': False, 'shape': (12, 8, 8, 3), }"
        path = with_array(save_npz(tmp_path / "a.npz"), "x_train", npy(header, pixels.tobytes(), version))
        assert np.array_equal(load_dataset(DatasetSpec(name="a", layout="npz", root=str(path)))[0].images, pixels)


def test_damage_inside_an_array_is_told(tmp_path):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **np.load(save_npz(tmp_path / "a.npz")))
    broken = bytearray(buffer.getvalue())
    broken[400:500] = b"?" * 100
    (tmp_path / "b.npz").write_bytes(broken)
    spec = DatasetSpec(name="a", layout="npz", root=str(tmp_path / "b.npz"))
    assert "b.npz" in message(load_dataset, spec)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_folder_or_a_pipe_is_told_and_never_waited_for(tmp_path, make):
    make(tmp_path / "a.npz")
    assert "is not an npz file" in told(tmp_path / "a.npz")


@pytest.mark.parametrize("shape", [(12, 0, 8, 3), (12, 8, 0), (12, 8, 8, 4), (12,)])
def test_images_without_pixels_or_of_other_channels_are_told(tmp_path, shape):
    assert "x_train has shape" in told(save_npz(tmp_path / "a.npz", x_train=np.zeros(shape, np.uint8)))


def test_too_many_synthetic_images_are_told_before_any_is_made():
    for spec in ({"num_classes": 1_000_000, "image_size": 224}, {"num_domains": 10**9}, {"train_per_class": 10**12}):
        text = message(load_dataset, DatasetSpec(name="s", layout="synthetic", **spec))
        assert "allowed: 32 GiB" in text and text == message(dataset_info, DatasetSpec(name="s", layout="synthetic", **spec))
