"""utils/data/archives.py: archives by content, limits, and damage of every kind."""

from __future__ import annotations

import gzip
import io
import os
import random
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from tests.utils.data import official_copies as copies
from tests.utils.data.official_copies import picture, tar, write, zipped
from utils.data import archives
from utils.data.archives import Source, damage_told
from utils.errors import UserError

FILES = {"a/images.txt": b"1 x\n", "a/x/0.png": picture(0), "a/other.txt": b"hello"}


def make(kind: str, path: Path, files: dict[str, bytes]) -> Path:
    if kind.startswith("zip"):
        with zipfile.ZipFile(path, "w", {"zip": 0, "zip8": 8, "zip12": 12, "zip14": 14}[kind]) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return path
    return tar(path, files, {"tar": "w", "gz": "w:gz", "bz2": "w:bz2", "xz": "w:xz"}[kind])


KINDS = ("zip", "zip8", "zip12", "zip14", "tar", "gz", "bz2", "xz")


def contents(source: Source) -> dict[str, bytes]:
    found = {}
    for member in source.members():
        with damage_told(source.path):
            found[member.name] = member.file.read()
    return found


def message(path: Path) -> str:
    with pytest.raises(UserError) as error:
        contents(Source.open(path))
    return str(error.value)


# By content --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["download", "CUB.tgz?download=1", "set.bin", "set.zip", "set.tgz", "set.tar", "1.0", "写真"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_is_known_by_its_first_bytes(tmp_path, kind, name):
    path = make(kind, tmp_path / name, FILES)
    assert contents(Source.open(path)) == FILES
    assert contents(Source.open(tmp_path)) == FILES, "in a folder too"


def test_a_single_gz_file_is_known_without_its_ending(tmp_path):
    for name in ("train-images.gz", "train-images"):
        (tmp_path / name).write_bytes(gzip.compress(b"pixels"))
        assert contents(Source.open(tmp_path / name)) == {"train-images": b"pixels"}


def test_an_image_in_a_folder_is_an_image_whatever_it_begins_with(tmp_path):
    (tmp_path / "x.jpg").write_bytes(zipped(tmp_path / "z", {"a": b"b"}).read_bytes())
    (tmp_path / "z").unlink()
    assert list(contents(Source.open(tmp_path))) == ["x.jpg"]


@pytest.mark.parametrize("name", ["CUB.tgz", "set.zip", "data", "x.tar.gz"])
@pytest.mark.parametrize("start, words", [(b"<!DOCTYPE html><html>", "web page"), (b"\n <html>", "web page"),
                                          (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"), (b"Rar!\x1a\x07\0", "rar"),
                                          (b"7z\xbc\xaf\x27\x1c", "7z"), (b"(\xb5/\xfd", "zstd")])
def test_what_is_no_archive_is_called_what_it_is(tmp_path, name, start, words):
    (tmp_path / name).write_bytes(start + b" " * 600)
    assert words in message(tmp_path / name)


@pytest.mark.skipif(os.name != "posix", reason="pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    for name in ("a.tgz", "b"):
        os.mkfifo(tmp_path / name)
        assert "a pipe or a device" in message(tmp_path / name)
    assert contents(Source.open(tmp_path)) == {}


# Damage ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_changed_in_an_archive_is_told_or_harmless(tmp_path, kind):
    rng, whole = random.Random(kind), make(kind, tmp_path / "a", copies.cub()).read_bytes()
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 3, 20))):
            data[rng.randrange(min(len(data), rng.choice((600, 2**30))))] = rng.choice((0, 255, rng.randrange(256)))
        (tmp_path / "a").write_bytes(data[:rng.choice((len(data), rng.randrange(len(data))))])
        try:
            contents(Source.open(tmp_path / "a"))
        except UserError as error:
            assert len(str(error)) < 1000


def test_a_source_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    write(tmp_path, {"images.txt": b"x"})

    def fail(*_, **__):
        raise PermissionError(13, "Permission denied")
    monkeypatch.setattr("builtins.open", fail)
    assert "cannot be read (Permission denied)" in message(tmp_path)


# Limits ------------------------------------------------------------------------------------------------------

def test_lists_do_not_fill_the_memory(tmp_path):
    """Forty texts of 16 MiB each, in a zip of 0.6 MB; some have names of annotations."""
    files = {f"{i}/{'images.txt' if i % 2 else 'notes.txt'}": b" " * 2**24 for i in range(12)}
    path = make("zip8", tmp_path / "a.zip", files)
    del files
    tracemalloc.start()
    source = Source.open(path)
    assert tracemalloc.get_traced_memory()[1] < 1.6 * archives.MAX_KEPT
    tracemalloc.stop()
    assert len(source.read("0/notes.txt")) == 2**24, "what was not kept is read when it is asked for"


def test_a_list_that_is_too_long_or_not_there_is_told(tmp_path):
    path = make("zip8", tmp_path / "a.zip", {"images.txt": b" " * (archives.MAX_NOTE + 1)})
    with pytest.raises(UserError, match="more than 16 MiB"):
        Source.open(path).read("images.txt")
    with pytest.raises(UserError, match=r"classes\.txt is missing"):
        Source.open(path).read("classes.txt")


@pytest.mark.parametrize("type_", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_tar_header_that_wants_much_memory_is_refused(tmp_path, type_):
    item = tarfile.TarInfo("x")
    item.type, item.size = type_, 2**31
    with gzip.open(tmp_path / "a.tgz", "wb") as file:
        file.write(item.tobuf(tarfile.GNU_FORMAT) + b"a" * 2**16)
    assert "has a header of 2,147,483,648 bytes, allowed: 1,048,576" in message(tmp_path / "a.tgz")


def test_what_is_announced_is_limited_before_it_is_read(tmp_path, monkeypatch):
    item = tarfile.TarInfo("x.png")
    item.size = 2**42
    (tmp_path / "a.tar").write_bytes(item.tobuf(tarfile.GNU_FORMAT))
    assert "allowed: 2,048 GiB" in message(tmp_path / "a.tar")
    monkeypatch.setattr(archives, "MAX_FILES", 3)
    assert "allowed: 2,048 GiB and 3 files" in message(tar(tmp_path / "b.tar", {f"{i}.png": b"" for i in range(5)}))


def test_a_gz_file_is_measured_before_it_is_written_and_limited(tmp_path, monkeypatch):
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(bytes(5 * 2**20)))
    source = Source.open(path)
    source.measure(["bomb"])
    assert source.sizes == {"bomb": 5 * 2**20}
    monkeypatch.setattr(archives, "MAX_SINGLE_GZ", 4 * 2**20)
    with pytest.raises(UserError, match="the limit for a single"):
        Source.open(path).measure(["bomb"])


def test_many_members_are_not_kept_in_memory(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for i in range(3_000):
            archive.addfile(tarfile.TarInfo(f"{i}.png"), io.BytesIO())
    tracemalloc.start()
    source = Source.open(tmp_path / "a.tar")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(source.names()) == 3_000 and peak < 3_000 * 500
