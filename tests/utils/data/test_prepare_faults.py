"""utils/data/prepare.py: wrong sources, full disks, planted links, kills and two at once."""

from __future__ import annotations

import errno
import gzip
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.utils.data import official_copies as copies
from tests.utils.data.official_copies import picture, tar, write, zipped
from tests.utils.data.test_prepare import small, tree  # noqa: F401 (small is a fixture)
from utils.data import prepare as prepare_module
from utils.data.prepare import TORCHVISION_FILES, preparable_sets, prepare
from utils.data.registry import REGISTRY, load_dataset
from utils.errors import UserError

PROJECT = Path(__file__).resolve().parents[3]
posix = pytest.mark.skipif(os.name != "posix", reason="links and fork")
PARTIAL = "cub_200.partial"


def message(name: str, source: Path, root: Path) -> str:
    with pytest.raises(UserError) as error:
        prepare(name, source, root)
    return str(error.value)


# Wrong sources -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", preparable_sets())
def test_a_wrong_source_leaves_nothing_behind(tmp_path, name):
    sources = {
        "empty": tmp_path / "empty",
        "photos": write(tmp_path / "photos", {f"holiday/{i}.jpg": picture(i) for i in range(3)}),
        "classes": write(tmp_path / "classes", {f"{s}/{c}/{i}.jpg": picture(i) for s in ("train", "val") for c in "ab" for i in (0, 1)}),
        "texts": zipped(tmp_path / "texts.zip", {"readme.txt": b"x", "images.txt": b"1 a\n"}),
        "raw": write(tmp_path / "raw", {Path(path).name: b"not this" for path in TORCHVISION_FILES.get(REGISTRY[name].info.folder, [])}),
    }
    for folder in sources.values():
        folder.exists() or folder.mkdir()
    for source in sources.values():
        assert message(name, source, tmp_path / "data")
        assert not (tmp_path / "data").exists() or not list((tmp_path / "data").iterdir()), source


def test_after_a_wrong_source_the_right_one_is_taken(tmp_path, small):  # noqa: F811
    small("imagenet100", 2, None, None)
    right = {f"{s}/{c}/{i}.png": picture(i) for s in ("train", "val") for c in ("n01", "n02") for i in range(2)}
    (tmp_path / "wrong").mkdir()
    message("imagenet100", tmp_path / "wrong", tmp_path / "data")
    message("imagenet100", write(tmp_path / "other", {"x.png": picture(0)}), tmp_path / "data")
    assert tree(prepare("imagenet100", zipped(tmp_path / "a.zip", right), tmp_path / "data")) == set(right)


def test_torchvisions_files_that_are_not_the_original_ones_are_not_kept(tmp_path):
    files = {name: b"x" * 7 for name in ("train", "test", "meta")}
    told = message("cifar100_224", write(tmp_path / "wrong", files), tmp_path / "data")
    assert "is not cifar100_224 as it should be" in told and "nothing of it is kept" in told and tree(tmp_path / "data") == set()


# Disks -------------------------------------------------------------------------------------------------------

@pytest.fixture
def free(monkeypatch):
    def set_free(count: int) -> None:
        monkeypatch.setattr(prepare_module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=count))
    return set_free


def test_a_gz_file_that_would_fill_the_disk_is_told_before_a_byte_is_written(tmp_path, free, monkeypatch):
    monkeypatch.setattr(prepare_module, "_load", lambda info, root: None)
    names = [Path(name).name for name in TORCHVISION_FILES["FashionMNIST"]]
    source = write(tmp_path / "source", {f"{name}.gz": gzip.compress(bytes(10 * 2**20)) for name in names})
    written = []
    monkeypatch.setattr(prepare_module, "_write_whole", lambda *arguments: written.append(arguments))
    free(prepare_module.SPARE + 39 * 2**20)
    assert "make room" in message("fashion_mnist", source, tmp_path / "data") and not written
    free(prepare_module.SPARE + 41 * 2**20)
    prepare("fashion_mnist", source, tmp_path / "data")
    assert len(written) == 4


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENAMETOOLONG])
def test_a_disk_that_fails_is_one_sentence_and_the_next_attempt_goes_on(tmp_path, small, monkeypatch, number):  # noqa: F811
    small("cub200_224", 3, 6, 3)
    source = tar(tmp_path / "cub.tgz", copies.cub())
    replace, done = os.replace, []

    def fail(old, new):
        if len(done) == 4:
            raise OSError(number, os.strerror(number))
        done.append(new)
        replace(old, new)
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module.os, "replace", fail)
        told = message("cub200_224", source, tmp_path)
    assert os.strerror(number) in told and "make room" in told
    assert len(tree(tmp_path / PARTIAL)) == 4 and not (tmp_path / "cub_200").exists()
    assert len(tree(prepare("cub200_224", source, tmp_path))) == 9 and not (tmp_path / PARTIAL).exists()


def test_a_root_that_cannot_be_written_is_one_sentence(tmp_path, small):  # noqa: F811
    small("cub200_224", 3, 6, 3)
    (tmp_path / "file").write_text("x")
    assert "--root" in message("cub200_224", tar(tmp_path / "cub.tgz", copies.cub()), tmp_path / "file" / "data")


def test_a_member_longer_or_shorter_than_announced_is_not_kept(tmp_path):
    for data, size, word in ((b"x" * 10, 9, "longer"), (b"x" * 10, 11, "shorter")):
        (tmp_path / "in").write_bytes(data)
        with open(tmp_path / "in", "rb") as file, pytest.raises(UserError, match=word):
            prepare_module._write_whole(prepare_module._Announced(file, size, tmp_path / "in"), tmp_path / "out")
        assert tree(tmp_path) == {"in"}


# Links -------------------------------------------------------------------------------------------------------

@posix
@pytest.mark.parametrize("place", [PARTIAL, f"{PARTIAL}/cub_200", f"{PARTIAL}/cub_200/train", f"{PARTIAL}/cub_200/train/001.Albatross",
                                   f"{PARTIAL}/cub_200/train/001.Albatross/bird_0.png", f"{PARTIAL}/cub_200/train/001.Albatross/.part",
                                   f"{PARTIAL}/.lock"])
@pytest.mark.parametrize("kind", ["folder", "file", "nothing"])
def test_planted_links_are_never_written_through(tmp_path, small, place, kind):  # noqa: F811
    small("cub200_224", 3, 6, 3)
    source, victim, link = tar(tmp_path / "cub.tgz", copies.cub()), tmp_path / "victim", tmp_path / "data" / place
    if kind == "folder":
        write(victim, {"mine": b"x"})
    elif kind == "file":
        victim.write_bytes(b"mine")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(victim)
    try:
        assert len(tree(prepare("cub200_224", source, tmp_path / "data"))) == 9
    except UserError as error:
        assert place in (PARTIAL, f"{PARTIAL}/.lock") and ("is a link" in str(error) or "cannot be written" in str(error))
    assert not victim.exists() if kind == "nothing" else tree(victim) == {"mine"} if kind == "folder" else victim.read_bytes() == b"mine"


@posix
def test_the_check_of_where_files_go_is_there_under_python_O_too(tmp_path):
    """Even for a link that appears after the folder was cleared."""
    code = """
import sys
from pathlib import Path
from utils.data import prepare
from utils.errors import UserError
folder, outside = Path(sys.argv[1]) / "set.partial" / "set", Path(sys.argv[1]) / "outside"
folder.mkdir(parents=True), outside.mkdir()
(folder / "train").symlink_to(outside)
prepare._remove_strays = lambda *_: None
class Files:
    path, sizes = Path("x"), {"a": 1}
    def members(self, wanted):
        import io
        from utils.data.archives import Member
        yield Member("a", 1, io.BytesIO(b"x"))
for target in ("train/a/b.png", "train/b.png", "../../outside/b.png"):
    try:
        prepare._copy(Files(), {"a": target}, folder, "set")
    except UserError as error:
        assert "leaves" in str(error) or sys.exit(1)
    else:
        sys.exit("no error for " + target)
sys.exit("written outside" if list(outside.iterdir()) else 0)
"""
    done = subprocess.run([sys.executable, "-O", "-c", code, str(tmp_path)], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@posix
def test_a_link_without_an_end_in_the_data_sets_place_is_told(tmp_path, small):  # noqa: F811
    small("cub200_224", 3, 6, 3)
    (tmp_path / "cub_200").symlink_to(tmp_path / "nowhere")
    assert "move it away" in message("cub200_224", tar(tmp_path / "cub.tgz", copies.cub()), tmp_path)
    assert not (tmp_path / "nowhere").exists()


# Kills and two at once ---------------------------------------------------------------------------------------

def start_slow(source: Path, root: Path, after: int) -> multiprocessing.Process:
    """A prepare in another process that stops for good after some files."""
    def work() -> None:
        whole, written = prepare_module._write_whole, []

        def slow(file, target):
            if len(written) == after:
                time.sleep(1000)
            written.append(target)
            whole(file, target)
        prepare_module._write_whole = slow
        prepare("cub200_224", source, root)
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    while not (root / PARTIAL).exists() or len([path for path in tree(root / PARTIAL) if path.endswith(".png")]) < after:
        assert process.is_alive()
        time.sleep(0.02)
    return process


@posix
def test_a_second_prepare_is_told_and_after_a_kill_the_next_goes_on(tmp_path, small, monkeypatch):  # noqa: F811
    small("cub200_224", 3, 6, 3)
    source = tar(tmp_path / "cub.tgz", copies.cub())
    process = start_slow(source, tmp_path / "data", after=3)
    try:
        assert "in use by another prepare" in message("cub200_224", source, tmp_path / "data")
        assert len([path for path in tree(tmp_path / "data" / PARTIAL) if path.endswith(".png")]) == 3
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    again, whole = [], prepare_module._write_whole
    monkeypatch.setattr(prepare_module, "_write_whole", lambda file, target: (again.append(target), whole(file, target)))
    assert len(tree(prepare("cub200_224", source, tmp_path / "data"))) == 9 and len(again) == 6
    assert tree(tmp_path / "data") == {f"cub_200/{path}" for path in tree(tmp_path / "data/cub_200")}


@posix
def test_several_at_once_give_one_whole_data_set(tmp_path, small):  # noqa: F811
    small("cub200_224", 3, 6, 3)
    source = tar(tmp_path / "cub.tgz", copies.cub())

    def work() -> None:
        try:
            prepare("cub200_224", source, tmp_path / "data")
        except UserError as error:
            assert "in use by another prepare" in str(error)
    processes = [multiprocessing.get_context("fork").Process(target=work) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 6
    assert len(load_dataset("cub200_224", str(tmp_path / "data"))[0]) == 6 and not (tmp_path / "data" / PARTIAL).exists()


def test_the_data_folder_itself_can_be_the_source(tmp_path, small):  # noqa: F811
    """What an interrupted attempt has copied there is not taken for part of it."""
    small("cub200_224", 3, 6, 3)
    write(tmp_path, copies.cub())
    write(tmp_path / PARTIAL, copies.cub())
    assert len(tree(prepare("cub200_224", tmp_path, tmp_path))) == 9 and not (tmp_path / PARTIAL).exists()
