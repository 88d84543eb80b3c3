"""utils/images/cache.py: every way of keeping images gives the same pixels."""

from __future__ import annotations

import logging
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from utils.config import Config
from utils.data.data_manager import DataManager
from utils.errors import UserError
from utils.images import cache as image_cache
from utils.images.cache import open_files


def make_images(root: Path, sizes: list[tuple[int, int]]) -> list[Path]:
    root.mkdir(parents=True, exist_ok=True)
    for i, size in enumerate(sizes):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)).save(root / f"{i}.png")
    return [root / f"{i}.png" for i in range(len(sizes))]


ONE_SIZE, MANY_SIZES = [(6, 5)] * 4, [(6, 5), (4, 9), (7, 7), (1, 1)]


@pytest.mark.parametrize("sizes", [ONE_SIZE, MANY_SIZES])
@pytest.mark.parametrize("cache", ["ram", "disk", "auto"])
def test_kept_images_equal_decoded_ones(tmp_path, sizes, cache):
    paths = make_images(tmp_path / "images", sizes)
    chosen = np.array([3, 0, 2])
    expected = open_files(paths, "none", name="s", folder=tmp_path)[0].get(chosen)
    for _ in range(2):  # the second time from the cache file
        store, kept = open_files(paths, cache, name="s", folder=tmp_path / "cache")
        assert kept.tolist() == [0, 1, 2, 3] and isinstance(store.get(chosen), torch.Tensor) == (sizes is ONE_SIZE)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(store.get(chosen), expected, strict=True))
        assert store.image_bytes(chosen) == sum(3 * sizes[i][0] * sizes[i][1] for i in chosen)


def test_a_changed_image_gets_a_new_cache_file(tmp_path):
    paths = make_images(tmp_path / "images", ONE_SIZE)
    open_files(paths, "disk", name="a/b", folder=tmp_path / "cache")
    Image.new("RGB", (5, 6), "red").save(paths[0], compress_level=0)
    store, _ = open_files(paths, "disk", name="a/b", folder=tmp_path / "cache")
    assert store.get(np.array([0]))[0, :, 0, 0].tolist() == [255, 0, 0]
    assert len(list((tmp_path / "cache").glob("*.bin"))) == 2 and not list((tmp_path / "cache").glob("*.part"))


@pytest.mark.parametrize("cache", ["ram", "disk", "none"])
def test_unreadable_images_are_left_out_or_named(tmp_path, cache, caplog):
    paths = make_images(tmp_path / "images", MANY_SIZES)
    paths[1].write_text("no image")
    with caplog.at_level(logging.WARNING, logger="slca"):
        store, kept = open_files(paths, cache, name="s", folder=tmp_path, skip_bad=True)
    assert kept.tolist() == [0, 2, 3] and "1 of 4 images left out" in caplog.text and "1.png" in caplog.text
    assert store.get(np.array([1]))[0].shape == (3, 7, 7)
    if cache != "none":
        with pytest.raises(UserError, match=r"1\.png cannot be read"):
            open_files(paths, cache, name="s", folder=tmp_path)


def test_auto_keeps_what_fits_and_says_so(tmp_path, monkeypatch, caplog):
    paths = make_images(tmp_path / "images", MANY_SIZES)
    size = sum(3 * h * w for h, w in MANY_SIZES)
    for free, processes, word in ((2 * size, 1, "ram"), (2 * size, 2, "none"), (2 * size - 2, 1, "none"), (None, 1, "none")):
        monkeypatch.setattr(image_cache, "available_memory", lambda free=free: free)
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="slca"):
            open_files(paths, "auto", name="s", folder=tmp_path, processes=processes)
        assert f"cache {word}" in caplog.text


@pytest.mark.parametrize("sizes", [[(90, 80)] * 40, [(90, 80)] * 39 + [(9, 8)], [(9, 8)] + [(90, 80)] * 39])
def test_images_kept_in_memory_are_there_once(tmp_path, monkeypatch, sizes):
    paths = make_images(tmp_path / "images", sizes)
    monkeypatch.setattr(image_cache, "AHEAD", 1)
    tracemalloc.start()
    store, _ = open_files(paths, "ram", name="s", folder=tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.35 * store.image_bytes(np.arange(40))
    assert all(np.array_equal(store.get(np.array([i]))[0].permute(1, 2, 0), Image.open(path)) for i, path in enumerate(paths))


def test_images_that_do_not_fit_in_memory_are_one_clear_message(tmp_path, monkeypatch):
    paths = make_images(tmp_path / "images", ONE_SIZE)
    monkeypatch.setattr(image_cache, "_in_memory", lambda *_, **__: np.empty(2**60, np.uint8))
    with pytest.raises(UserError, match='set "cache" to "disk"'):
        open_files(paths, "ram", name="s", folder=tmp_path)


def test_the_free_memory_is_known_here_and_not_larger_than_the_machine():
    free = image_cache.available_memory()
    assert free is None or 0 <= free < 2**50


@pytest.mark.parametrize("cache", ["ram", "disk", "none"])
def test_a_run_sees_the_same_batches_whatever_the_cache(tmp_path, cache):
    for c in ("a", "b"):
        for part in ("train", "val"):
            make_images(tmp_path / part / c, MANY_SIZES)
    (tmp_path / "train" / "a" / "2.png").write_text("no image")
    values = dict(model_name="slca", convnet_type="none", epochs=1, init_cls=2, increment=0, num_workers=0, bad_images="skip",
                  data_root=str(tmp_path / "data"), dataset={"name": "f", "root": str(tmp_path), "image_size": 16})
    data, plain = (DataManager(Config(**values, cache=c), 0) for c in (cache, "none"))
    assert data.count("train", 0) == 7
    settings = dict(batch_size=4, augment=True, shuffle_seed=1)
    for ours, theirs in zip(data.batches("train", 0, **settings), plain.batches("train", 0, **settings), strict=True):
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


def test_a_second_seed_uses_the_first_ones_images_and_workers():
    config = Config(model_name="slca", convnet_type="none", epochs=1, init_cls=2, increment=2, num_workers=0,
                    dataset={"name": "s", "layout": "synthetic", "num_classes": 6, "image_size": 8})
    first = DataManager(config, 0)
    second, alone = DataManager(config, 1, share_images_of=first), DataManager(config, 1)
    assert second._images is first._images and second._pool is first._pool and second.stream.class_order != first.stream.class_order
    ours, theirs = (next(iter(d.batches("test", 0, batch_size=99, augment=False))) for d in (second, alone))
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
