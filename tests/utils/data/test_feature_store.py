"""Features on disk: what was kept comes back, what is damaged is computed again, and the folder stays bounded."""

import os

import numpy as np
import pytest

from utils.data.cache_folder import clear, kept, table
from utils.data.feature_store import FeatureStore, packs, trim

RECIPE = {"backbone": {"timm": "vit", "sha256": "ab" * 32, "parts": ["cls"]}, "input": {"size": 28}, "method": {"views": 1}}
GIB = 2**30


def digests(*numbers):
    return np.array([[n] * 16 for n in numbers], dtype=np.uint8)


def features(*numbers):
    return np.array([[n, n + 0.5] for n in numbers], dtype=np.float32)


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path, RECIPE, GIB)


def test_another_process_reads_the_rows_of_several_passes(store, tmp_path):
    store.add(digests(1, 2), features(1, 2))
    store.add(digests(3), features(3))
    known, rows = FeatureStore(tmp_path, RECIPE, GIB).read(digests(3, 9, 1))
    assert known.tolist() == [True, False, True]
    assert np.array_equal(np.stack(rows), features(3, 1))


def test_rows_that_another_run_wrote_meanwhile_are_found(store, tmp_path):
    other = FeatureStore(tmp_path, RECIPE, GIB)
    assert not store.read(digests(5))[0].any()
    other.add(digests(5), features(5))
    assert store.read(digests(5))[0].all()


def test_two_runs_that_compute_the_same_rows_leave_one_file(store, tmp_path):
    store.add(digests(1, 2), features(1, 2))
    FeatureStore(tmp_path, RECIPE, GIB).add(digests(1, 2), features(1, 2))
    assert len(list(packs(tmp_path))) == 1


def test_another_recipe_finds_nothing(store, tmp_path):
    store.add(digests(1), features(1))
    assert not FeatureStore(tmp_path, {**RECIPE, "method": {"views": 5}}, GIB).read(digests(1))[0].any()


def flipped(data, place):
    return data[:place] + bytes([data[place] ^ 1]) + data[place:][1:]


@pytest.mark.parametrize(("damage", "told"), [
    (lambda data: flipped(data, -50), True),  # in the features, before 32 bytes of checksum and 16 of the digest
    (lambda data: flipped(data, -1), False),  # in the digest: the row is of no image
    (lambda data: data[:-3], True), (lambda data: b"", True), (lambda data: b"x" * 99, True)])
def test_a_damaged_file_is_told_and_its_rows_are_not_known(store, tmp_path, caplog, damage, told):
    store.add(digests(1), features(1))
    store.add(digests(2), features(2))
    (pack, _), (_, _) = sorted(packs(tmp_path))
    pack.write_bytes(damage(pack.read_bytes()))
    known, rows = FeatureStore(tmp_path, RECIPE, GIB).read(digests(1, 2))
    assert sorted(known.tolist()) == [False, True] and (f"{pack} is damaged" in caplog.text) == told
    assert np.array_equal(rows[0], features(1)[0] if known[0] else features(2)[0])


def test_a_disk_that_cannot_be_written_is_told_once_and_stops_nothing(store, tmp_path, caplog):
    tmp_path.joinpath(store.folder.name).write_text("a file where the folder would be")
    store.add(digests(1), features(1))
    store.add(digests(2), features(2))
    assert [record.getMessage().count("the run goes on without") for record in caplog.records] == [1]


def test_the_longest_unused_go_first_when_the_limit_is_reached(store, tmp_path):
    for number in (1, 2, 3):
        store.add(digests(number), features(number))
    for age, (pack, _) in enumerate(sorted(packs(tmp_path), key=lambda item: item[0].name)):
        os.utime(pack, (1000 + age, 1000 + age))
    oldest = min(packs(tmp_path), key=lambda item: item[1].st_mtime)[0]
    size = oldest.stat().st_size
    assert trim(tmp_path, 2 * size) == 1 and not oldest.exists()
    fresh = FeatureStore(tmp_path, RECIPE, GIB)
    used = next(number for number in (1, 2, 3) if fresh.read(digests(number))[0].all())  # reading marks it as used
    assert trim(tmp_path, size) == 1 and FeatureStore(tmp_path, RECIPE, GIB).read(digests(used))[0].all()


def test_the_cache_folder_is_shown_and_cleared_by_kind(store, tmp_path):
    root = tmp_path / "cache"
    FeatureStore(root / "features", RECIPE, GIB).add(digests(1), features(1))
    (root / "photos_train-1a2b.bin").write_bytes(bytes(2_000_000))
    (root / "index-imagenet1000-1a2b.npz").write_bytes(b"list")
    (root / "unrelated.txt").write_text("stays")
    shown = table(kept(root), root)
    assert "vit, weights abababababab, 28 px, cls" in shown and "2.0 MB" in shown and "photos_train" in shown
    assert [each.kind for each in clear(root, ("features",))] == ["features"]
    assert sorted(each.kind for each in kept(root)) == ["images", "lists"]
    assert table(kept(root, ("features",)), root, ("features",)) == f"{root} holds no features"
    clear(root)
    assert not kept(root) and (root / "unrelated.txt").exists() and "holds no decoded images" in table(kept(root), root)
