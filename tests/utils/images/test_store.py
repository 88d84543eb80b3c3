"""utils/images/store.py: opening image files."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from utils.errors import UserError
from utils.images.store import FileStore, read_image


def test_a_pipe_or_device_is_told_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero", tmp_path):
        with pytest.raises(UserError, match="is a folder, a pipe or a device and no file"):
            read_image(path)


def test_a_store_of_files_keeps_no_path_objects_and_reads_what_is_asked_for(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for file, image in zip(files, pixels, strict=True):
        Image.fromarray(image).save(file)
    store = FileStore(files)
    assert not isinstance(store.paths, list) and list(store.paths) == files
    got = store.get(np.array([2, 0]))
    assert np.array_equal(got[0].permute(1, 2, 0), pixels[2]) and np.array_equal(got[1].permute(1, 2, 0), pixels[0])
    assert store.image_bytes(np.array([1])) == files[1].stat().st_size


def test_a_strip_that_resizing_would_blow_up_is_told_before_it_is_decoded(tmp_path):
    for size, told in (((100_000, 1), "has 100000 x 1 pixels"), ((2, 8001), "has 2 x 8001 pixels")):
        Image.new("1", size).save(tmp_path / "strip.png")
        with pytest.raises(UserError, match=f"{told}, allowed: a longest side of at most 4000 times the shortest"):
            read_image(tmp_path / "strip.png")
    Image.new("1", (4000, 1)).save(tmp_path / "strip.png")
    assert read_image(tmp_path / "strip.png").shape == (1, 4000, 3)
