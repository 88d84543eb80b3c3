"""Reading files of weights: a file is called what its bytes say, harmless objects are passed over, others are named."""

import argparse
import fractions
import io
import pathlib
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from convs.weight_files import flatten, read_tensors
from utils.errors import UserError

TENSOR = torch.arange(3.0)


def tar_of(name):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return stream.getvalue()


def zip_of(name):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, "text")
    return stream.getvalue()


def zip_of_a_newer_version(name):
    data = bytearray(zip_of(name))
    data[data.index(b"PK\x01\x02") + 6] = 200  # the version that is needed to unpack it
    return bytes(data)


@pytest.mark.parametrize(("data", "told"), [
    (b"", "an empty file"),
    (b'{"error": "not found"}', "a JSON text"),
    (b'[1, 2]', "a JSON text"),
    (b'\xef\xbb\xbf  {"a": 1}', "a JSON text"),
    (b'{"metadata": {}, "weight_map": {"a": "model-1.safetensors"}}', "the JSON index of weights that are spread over several files"),
    (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page"),
    (b"\n  <html lang=en>", "an HTML page"),
    (b'<?xml version="1.0"?><Error/>', "an XML or HTML text"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n", "a git-lfs pointer.*git lfs pull"),
    (b"Entry not found", "a text that begins 'Entry not found'"),
    (zip_of("weights/model.h5"), r"a zip archive \(weights/model.h5\); unpack it"),
    (zip_of("a.txt")[:20], "a zip archive that was cut short"),
    (zip_of_a_newer_version("a.txt"), r"a zip archive that cannot be read \(zip file version 20.0\); unpack it with the program"),
    (tar_of("model.pth"), "a tar archive; unpack it"),
    (b"\x1f\x8b\x08" + bytes(20), "a gzip archive; unpack it"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x93NUMPY\x01\x00", "a single numpy array"),
    (b"\x89PNG\r\n", "a PNG image"),
    (bytes(range(1, 200)), "of no known kind .*01 02 03 04"),
], ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz"])
def test_what_is_no_file_of_weights_is_called_what_its_first_bytes_say(tmp_path, data, told, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"a{suffix}: not a readable file of weights, it is {told}"):
        read_tensors(path)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_torchscript_program_is_called_that(tmp_path):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(str(tmp_path / "a.pt"))
    with pytest.raises(UserError, match="a TorchScript program; save the model's state_dict"):
        read_tensors(tmp_path / "a.pt")


@pytest.mark.parametrize("beside", [
    np.float64(83.1), np.int32(3), np.bool_(True), np.str_("best"), np.datetime64("2020-01-01"), np.arange(3), np.random.get_state(),
    pathlib.PurePosixPath("runs/1"), pathlib.Path("."), argparse.Namespace(lr=0.1, out=pathlib.Path("a")), {"history": [np.float32(1)]}],
    ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("zipped", [True, False])
def test_numpy_values_paths_and_namespaces_beside_the_weights_are_passed_over(tmp_path, beside, zipped):
    torch.save({"model": {"w": TENSOR}, "best": beside}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    found = read_tensors(tmp_path / "a.pth")
    assert list(found) == ["model.w"] and torch.equal(found["model.w"], TENSOR)


@pytest.mark.parametrize(("held", "name"), [
    (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"), (fractions.Fraction(1, 2), "fractions.Fraction"), (len, "len")],
    ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_refused_object_is_named_in_one_plain_sentence(tmp_path, held, name, zipped):
    torch.save({"model": {"w": TENSOR}, "held": held}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=rf"a.pth: refused, because it holds the Python class or function {name}, ") as caught:
        read_tensors(tmp_path / "a.pth")
    assert "\x1b" not in str(caught.value) and "\n" not in str(caught.value) and "add_safe_globals" not in str(caught.value)


def test_nothing_stays_allowed_after_reading(tmp_path):
    torch.save({"w": TENSOR, "best": np.float64(1)}, tmp_path / "a.pth")
    before = torch.serialization.get_safe_globals()
    read_tensors(tmp_path / "a.pth")
    assert set(torch.serialization.get_safe_globals()) == set(before)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], TENSOR, {"a": {"b": []}}])
def test_a_file_without_named_tensors_is_told(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match="holds no tensors by name"):
        read_tensors(tmp_path / "a.pth")


def test_containers_that_hold_themselves_or_each_other_many_times_are_read_once():
    loop = {"w": TENSOR}
    loop["again"] = loop
    shared = {"w": TENSOR}
    for _ in range(100):
        shared = {"left": shared, "right": shared}
    assert list(flatten(loop)) == ["w"]
    assert len(flatten(shared)) == 1


def test_a_file_that_is_gone_or_a_folder_is_told(tmp_path):
    for path in (tmp_path, tmp_path / "none.pth"):
        with pytest.raises(UserError, match="cannot be read"):
            read_tensors(path)
