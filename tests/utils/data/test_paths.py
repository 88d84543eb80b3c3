"""utils/data/paths.py: a sequence of paths that takes few bytes and is not copied by processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from utils.data import paths as paths_module
from utils.data.paths import Paths, PathsBuilder

NAMES = ["a/1.png", "a/2.png", "b/c/3.png", "4.png", "a/é 5.png", "b/\udcff.png"]


def test_paths_are_what_was_put_in():
    paths = Paths.of(NAMES)
    assert list(paths) == [Path(name) for name in NAMES] and len(paths) == 6
    assert paths[0] == Path("a/1.png") and paths[-1] == Path("b/\udcff.png") and paths[np.int64(3)] == Path("4.png")
    assert [os.fsdecode(raw) for raw in paths.raw()] == NAMES == [paths.text(i) for i in range(6)]
    with pytest.raises(IndexError):
        paths[6]
    assert len(Paths.of([])) == 0 and list(Paths.of([])) == []


@pytest.mark.parametrize("taken", [2, 2**16])
def test_slices_and_positions_give_paths_in_that_order(monkeypatch, taken):
    monkeypatch.setattr(paths_module, "TAKEN", taken)
    paths, positions = Paths.of(NAMES), np.array([5, 0, 0, 3, 2])
    assert list(paths[positions]) == [Path(NAMES[i]) for i in positions]
    assert list(paths[1:4]) == [Path(name) for name in NAMES[1:4]] and list(paths[::-1]) == [Path(name) for name in NAMES[::-1]]
    assert len(paths[np.array([], dtype=np.int64)]) == 0 and paths[1:4] == Paths.of(NAMES[1:4]) != Paths.of(NAMES[1:3])


def test_joined_parts_come_one_after_another_and_share_folders():
    joined = Paths.join([Paths.of(NAMES[:2]), Paths.of([]), Paths.of(NAMES[2:])])
    assert joined == Paths.of(NAMES) and len(joined.folders) == 4


def large() -> Paths:
    builder = PathsBuilder()
    for c in range(100):
        for i in range(1281):
            builder.add(f"/a/long/way/to/the/imagenet/train/n{c:08d}", f"n{c:08d}_{i}.JPEG")
    return builder.done()


def test_a_path_takes_a_small_part_of_100_mib_over_1_28_million():
    paths = large()
    assert paths.nbytes * 10 < 50 * 2**20, "ten times as many, ImageNet's number, in 50 MiB"
    assert len(paths) == 128_100 and paths[128_099].name == "n00000099_1280.JPEG"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_forked_worker_that_reads_all_paths_copies_none_of_them():
    paths = large()
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            before = private_bytes()
            for i in range(len(paths)):
                paths.text(i)
            os.write(write, str(private_bytes() - before).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert int(os.read(read, 100)) < paths.nbytes / 2
    os.close(read)
    os.close(write)


def private_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))
