"""utils/data/downloads.py: what is downloaded, what is said before, and what arrived."""

from __future__ import annotations

import hashlib
import logging
import shutil
from dataclasses import replace

import pytest

from utils.data.arrays import load_torchvision
from utils.data.cards import Archive
from utils.data.downloads import check_sums, download
from utils.data.registry import REGISTRY
from utils.errors import UserError

GOOD = hashlib.md5(b"good").hexdigest()


def test_an_archive_under_its_official_name_must_have_the_published_md5(tmp_path):
    archives = (Archive("birds.tgz", 1e-8, md5=GOOD), Archive("fashion/labels.gz", None, md5=GOOD), Archive("other.zip", 0.1))
    (tmp_path / "birds.tgz").write_bytes(b"good")
    check_sums(tmp_path / "birds.tgz", archives)
    (tmp_path / "birds.tgz").write_bytes(b"half of i")
    for source in (tmp_path / "birds.tgz", tmp_path):
        with pytest.raises(UserError, match=rf"birds\.tgz is not the file that its source published: .* expected {GOOD}; download"):
            check_sums(source, archives)
    (tmp_path / "birds.tgz").rename(tmp_path / "my_birds.tgz")
    check_sums(tmp_path, archives)
    (tmp_path / "fashion").mkdir()
    (tmp_path / "fashion/labels.gz").write_bytes(b"bad")
    with pytest.raises(UserError, match=r"labels\.gz"):
        check_sums(tmp_path, archives)


def test_a_far_smaller_file_of_an_official_name_is_only_told(tmp_path, caplog):
    (tmp_path / "birds.tgz").write_bytes(b"a sample")
    with caplog.at_level(logging.WARNING, logger="slca"):
        check_sums(tmp_path, (Archive("birds.tgz", 1.0, md5=GOOD),))
    assert "not the file that its source published" in caplog.text and "far smaller" in caplog.text


def test_a_download_says_before_what_how_large_from_where_and_under_which_licence(tmp_path, monkeypatch, caplog):
    asked = []

    def arrives(url, place, name, md5):
        asked.append((url, name, md5, "food-101.tar.gz from http" in caplog.text and "5 GB" in caplog.text))
    monkeypatch.setattr("torchvision.datasets.utils.download_url", arrives)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 10**12))
    with caplog.at_level(logging.INFO, logger="slca"):
        folder = download("food101", tmp_path)
    archive = REGISTRY["food101"].card.archives[0]
    assert asked == [(archive.url, "food-101.tar.gz", archive.md5, True)] and folder == tmp_path / "downloads/food101"
    assert REGISTRY["food101"].card.licence in caplog.text


def test_a_download_that_cannot_be_is_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"objectnet cannot be downloaded by this program \(objnet.tgz\); get it from .*--source"):
        download("objectnet", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 10**9))
    with pytest.raises(UserError, match=r"about 10\.0 GB are needed .* 1\.0 GB are free"):
        download("food101", tmp_path)

    def fails(*args):
        raise RuntimeError("File not found or corrupted.")
    monkeypatch.setattr("torchvision.datasets.utils.download_url", fails)
    with pytest.raises(UserError, match=r"EuroSAT\.zip cannot be downloaded \(File not found or corrupted\.\); try again, or place it in"):
        download("eurosat", tmp_path)


def test_every_archive_with_an_address_has_a_size_or_says_that_none_is_stated():
    for name, entry in REGISTRY.items():
        for archive in entry.card.archives:
            assert archive.gigabytes is None or archive.gigabytes > 0, name
            assert not archive.md5 or len(archive.md5) == 32, name
    assert REGISTRY["food101"].card.size == "5 GB" and REGISTRY["objectnet"].card.size == "not stated"
    assert REGISTRY["imagenet1000"].card.size == "145 GB"
    assert replace(REGISTRY["food101"].card, archives=()).size == "not stated"


def test_a_set_that_torchvision_cannot_download_is_one_sentence_even_where_the_error_says_nothing(tmp_path, monkeypatch):
    def silent(*args, **kwargs):
        raise TimeoutError if kwargs["download"] else RuntimeError("Dataset not found")
    monkeypatch.setattr("torchvision.datasets.CIFAR10", silent)
    with pytest.raises(UserError, match=r"CIFAR10 is not complete under .* cannot be downloaded \(TimeoutError\); place cifar-10-python"):
        load_torchvision("CIFAR10", tmp_path)
