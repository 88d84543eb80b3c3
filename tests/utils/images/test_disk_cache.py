"""utils/images/disk_cache.py: damage, kills, links, odd names, full and closed disks, and several processes."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.config import Config
from utils.data.data_manager import DataManager
from utils.errors import UserError
from utils.images import disk_cache
from utils.images.cache import open_files
from utils.images.disk_cache import DiskStore, open_disk_cache

SIZES = [(6, 5), (4, 9), (7, 7), (1, 1)]
posix = pytest.mark.skipif(os.name != "posix", reason="links, pipes and fork")


@pytest.fixture
def paths(tmp_path) -> list[Path]:
    folder = tmp_path / "images"
    folder.mkdir()
    for i, size in enumerate(SIZES):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return [folder / f"{i}.png" for i in range(len(SIZES))]


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "cache"


def pictures(paths: list[Path]) -> list[np.ndarray]:
    return [np.array(Image.open(path)) for path in paths]


def opened(paths: list[Path], folder: Path, name: str = "s", decode: Callable[[], Iterator[np.ndarray]] | None = None,
           expected: int = 0) -> DiskStore:
    return open_disk_cache(paths, decode or (lambda: iter(pictures(paths))), name=name, folder=folder, variant=False, expected=expected)


def check(store: DiskStore, paths: list[Path]) -> None:
    for ours, theirs in zip(store.get(np.arange(len(paths))), pictures(paths), strict=True):
        assert np.array_equal(ours.permute(1, 2, 0), theirs)


def cache_file(folder: Path) -> Path:
    (file,) = folder.glob("*.bin")
    return file


def never() -> Iterator[np.ndarray]:
    raise AssertionError("the cache is there, nothing needs decoding")


# Damage ------------------------------------------------------------------------------------------------------

def test_a_whole_cache_is_used_without_decoding(paths, folder, caplog):
    check(opened(paths, folder), paths)
    with caplog.at_level(logging.WARNING, logger="slca"):
        check(opened(paths, folder, decode=never), paths)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_one_changed_byte_anywhere_is_noticed_and_the_pixels_stay_right(paths, folder, caplog):
    opened(paths, folder)
    whole = cache_file(folder).read_bytes()
    for place in [*range(0, len(whole), 17), len(whole) - 1]:
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        for file in folder.glob("*.bin"):
            file.unlink()
        (folder / next(iter(folder.glob("*.lock"))).with_suffix(".bin").name).write_bytes(data)
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="slca"):
            check(opened(paths, folder), paths)
        assert caplog.text.count("is damaged") == 1, f"byte {place}"
        check(opened(paths, folder), paths)
        assert caplog.text.count("is damaged") == 1, "the cache was made again"


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d + b"x", lambda d: b"", lambda d: d[: len(d) // 2],
                                    lambda d: b"\0" * len(d), lambda d: b"\xff" * len(d)])
def test_a_file_of_another_length_or_content_is_made_again(paths, folder, change, caplog):
    opened(paths, folder)
    cache_file(folder).write_bytes(change(cache_file(folder).read_bytes()))
    check(opened(paths, folder), paths)
    assert "is damaged; it is made again" in caplog.text
    check(opened(paths, folder, decode=never), paths)


def test_a_file_that_shrinks_or_goes_while_it_is_used_does_no_harm(paths, folder, caplog):
    store = opened(paths, folder)
    os.truncate(cache_file(folder), 10)
    check(store, paths)
    assert "damaged at image" in caplog.text and not list(folder.glob("*.bin"))
    store = opened(paths, folder)
    cache_file(folder).unlink()
    check(store, paths)


def test_damage_of_an_image_that_is_gone_too_is_one_clear_message(paths, folder):
    store = opened(paths, folder)
    os.truncate(cache_file(folder), 10)
    paths[2].unlink()
    with pytest.raises(UserError, match=r"2\.png does not exist"):
        store.get(np.array([2]))


def test_other_processes_read_the_same_pixels(paths, folder):
    store = opened(paths, folder)
    check(pickle.loads(pickle.dumps(store)), paths)
    if sys.platform == "linux":
        processes = [multiprocessing.get_context("fork").Process(target=check, args=(store, paths)) for _ in range(3)]
        for process in processes:
            process.start()
        check(store, paths)
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0, 0, 0]


# Kills and other processes -----------------------------------------------------------------------------------

def start_writer(paths: list[Path], folder: Path) -> multiprocessing.Process:
    """A process that has written some of the cache and does not get on."""
    def slow() -> Iterator[np.ndarray]:
        yield np.zeros((300, 300, 3), np.uint8)
        time.sleep(1000)
    process = multiprocessing.get_context("fork").Process(target=opened, args=(paths, folder), kwargs={"decode": slow})
    process.start()
    while not any(part.stat().st_size for part in folder.glob("*.part")):
        time.sleep(0.02)
    return process


@posix
def test_what_a_killed_process_left_is_deleted_and_what_a_living_one_writes_is_not(paths, folder, caplog):
    writer = start_writer(paths, folder)
    try:
        opened(paths[:2], folder)
        assert len(list(folder.glob("*.part"))) == 1, "another data set does not touch it"
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    assert len(list(folder.glob("*.part"))) == 1
    (folder / "of_an_older_version-0123.4711.part").write_bytes(b"x")
    with caplog.at_level(logging.INFO, logger="slca"):
        opened(paths[:2], folder, decode=never)
    assert not list(folder.glob("*.part")) and "never finished" in caplog.text


@posix
def test_a_process_that_does_not_get_on_is_not_waited_for_for_ever(paths, folder, monkeypatch):
    monkeypatch.setattr(disk_cache, "LOOK", 0.05)
    monkeypatch.setattr(disk_cache, "PATIENCE", 0.2)
    writer = start_writer(paths, folder)
    try:
        with pytest.raises(UserError, match=r'another process holds .* "cache" to "none"'):
            opened(paths, folder)
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    check(opened(paths, folder), paths)


@posix
def test_of_several_processes_one_decodes(paths, folder, tmp_path):
    def decode() -> Iterator[np.ndarray]:
        with open(tmp_path / "decoded", "a") as file:
            file.write("x")
        time.sleep(0.3)
        yield from pictures(paths)

    def work() -> None:
        check(opened(paths, folder, decode=decode), paths)
    processes = [multiprocessing.get_context("fork").Process(target=work) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4 and (tmp_path / "decoded").read_text() == "x"


# Links and other things in the way ---------------------------------------------------------------------------

@posix
@pytest.mark.parametrize("ending", [".part", ".bin", ".lock"])
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe"])
def test_planted_links_and_pipes_are_neither_followed_nor_waited_for(paths, folder, tmp_path, ending, kind):
    opened(paths, folder)
    planted, victim = cache_file(folder).with_suffix(ending), tmp_path / "victim"
    for file in folder.iterdir():
        file.unlink()
    if kind == "link":
        victim.write_text("mine")
        planted.symlink_to(victim)
    elif kind == "dangling":
        planted.symlink_to(victim)
    elif ending == ".lock":
        return  # a pipe is as good a lock as a file
    else:
        os.mkfifo(planted)
    check(opened(paths, folder), paths)
    check(opened(paths, folder, decode=never), paths)
    assert victim.read_text() == "mine" if kind == "link" else not victim.exists()


# Names, disks ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["写真データ" * 16, "x" * 300, "😀" * 90, "caf\udce9", "", "../../a b/..", "a\nb\0c", "é" * 99], ids=ascii)
def test_any_name_of_a_data_set_gives_a_file(paths, folder, name, caplog):
    caplog.set_level(logging.CRITICAL, logger="slca.data")  # the log shows the name, which pytest cannot hand to another process
    check(opened(paths, folder, name=name), paths)
    assert cache_file(folder).parent == folder and len(os.fsencode(cache_file(folder).name)) <= 140
    check(opened(paths, folder, name=name, decode=never), paths)


def test_a_folder_that_cannot_be_written_is_one_clear_message(paths, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r'cannot write .*; make room or name another data_root, or set "cache" to "ram" or "none"'):
        opened(paths, tmp_path / "file" / "cache")
    if os.path.isdir("/proc/self"):
        with pytest.raises(UserError, match="cannot write"):
            opened(paths, Path("/proc/self/cache"))
    config = Config(model_name="slca", convnet_type="none", epochs=1, init_cls=1, increment=1, num_workers=0, cache="disk",
                    data_root=str(tmp_path / "file"), dataset={"name": "f", "root": str(tmp_path / "set"), "image_size": 16})
    for part in ("train/a", "val/a"):
        (tmp_path / "set" / part).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "set" / part / "0.png")
    with pytest.raises(UserError, match="cannot write"):
        DataManager(config, 0)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_fails_while_it_is_written_leaves_nothing(paths, folder, monkeypatch, number):
    def fail(_):
        raise OSError(number, os.strerror(number))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(UserError, match=os.strerror(number)):
            opened(paths, folder)
    assert not list(folder.glob("*.part")) and not list(folder.glob("*.bin"))
    check(opened(paths, folder), paths)


def test_a_disk_that_is_too_small_is_told_before_it_is_filled(paths, folder):
    with pytest.raises(UserError, match="GiB are free; make room"):
        opened(paths, folder, decode=never, expected=2**60)
    assert not list(folder.glob("*.part"))


def test_a_cache_that_is_there_needs_no_writable_folder(paths, folder, monkeypatch):
    opened(paths, folder)
    monkeypatch.setattr(disk_cache, "_lock", lambda file: (_ for _ in ()).throw(PermissionError(13, "no")))
    check(opened(paths, folder, decode=never), paths)


def test_a_missing_image_is_told_by_its_name(paths, folder):
    paths[1].unlink()
    with pytest.raises(UserError, match=r"1\.png does not exist"):
        open_files(paths, "disk", name="s", folder=folder)
