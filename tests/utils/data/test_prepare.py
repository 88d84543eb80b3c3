"""utils/data/prepare.py, utils/data/archives.py and utils/data/official.py on small archives in the official layouts."""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.utils.data import official_copies as copies
from tests.utils.data.official_copies import matlab, picture, tar, write, zipped
from utils.data import prepare as prepare_module
from utils.data import registry as datasets
from utils.data.prepare import prepare
from utils.data.registry import REGISTRY, dataset_info, load_dataset
from utils.errors import UserError


@pytest.fixture
def small(monkeypatch):
    """small("cub200_224", classes, train, test): the registry announces the counts of a small archive."""
    def shrink(name: str, num_classes: int, train: int | None, test: int | None, **changes) -> None:
        info = replace(REGISTRY[name].info, num_classes=num_classes, train_count=train, test_count=test, **changes)
        load = REGISTRY[name].load
        if name == "domainnet":
            def load(root):
                return datasets._load_domainnet(info, root)
        monkeypatch.setitem(REGISTRY, name, replace(REGISTRY[name], info=info, load=load))
    return shrink


def cars_files() -> copies.Files:
    return copies.cars("cars_test_annos_withlabels.mat")


def imagenet_r_files() -> copies.Files:
    return copies.class_folders("imagenet-r", ("n00", "n01", "n02", "n03"), name="art_{1}.png")


def tree(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


# Official layouts, read in place -------------------------------------------------------------------------------

def test_cub_is_read_in_its_official_layout(tmp_path, small):
    small("cub200_224", 3, 6, 3)
    write(tmp_path / "cub_200", copies.cub())
    train, test, names = load_dataset("cub200_224", str(tmp_path))
    assert names == ["001.Albatross", "002.Auklet", "003.Wren"] and train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert [p.name for p in test.images] == ["bird_1.png"] * 3 and all(p.is_file() for p in train.images)


def test_cars_are_read_from_the_devkit_in_either_form(tmp_path, small):
    small("cars196_224", 2, 4, 2)
    write(tmp_path / "a" / "cars196", cars_files())
    train, test, names = load_dataset("cars196_224", str(tmp_path / "a"))
    assert names == ["001.Ram C-V Van", "002.Audi TT"]
    assert [p.name for p in train.images] == [f"0000{i}.jpg" for i in (1, 2, 3, 4)] and train.labels.tolist() == [1, 0, 0, 1]
    assert test.labels.tolist() == [0, 1]
    kind = [("relative_im_path", "O"), ("class", "i4"), ("test", "i4")]
    rows = np.array([("car_ims/1.jpg", 2, 0), ("car_ims/2.jpg", 1, 0), ("car_ims/3.jpg", 1, 1), ("car_ims/4.jpg", 2, 1)], dtype=kind)
    small("cars196_224", 2, 2, 2)
    write(tmp_path / "b" / "cars196", {f"car_ims/{i}.jpg": picture(i) for i in (1, 2, 3, 4)} | {
        "cars_annos.mat": matlab({"annotations": rows, "class_names": np.array(["Ram C/V Van", "Audi TT"], dtype=object)})})
    train, test, names = load_dataset("cars196_224", str(tmp_path / "b"))
    assert train.labels.tolist() == [1, 0] and test.labels.tolist() == [0, 1]


def test_imagenet_r_is_split_by_one_permutation_of_all_sorted_paths_and_keeps_it(tmp_path, small):
    small("imagenet-r", 4, 16, 4)
    folder = write(tmp_path, imagenet_r_files()) / "imagenet-r"
    train, _test, names = load_dataset("imagenet-r", str(tmp_path))
    paths = sorted(f"n0{c}/art_{i}.png" for c in range(4) for i in range(5))
    order = np.random.default_rng(0).permutation(20)
    assert {p.relative_to(folder).as_posix() for p in train.images} == {paths[i] for i in order[:16]}
    split = json.loads((folder / "split.json").read_text())
    assert len(split["train"]) == 16 and len(names) == 4
    split["train"], split["test"] = split["test"], split["train"]
    (folder / "split.json").write_text(json.dumps(split))
    assert len(load_dataset("imagenet-r", str(tmp_path))[0]) == 4, "a given split is honoured"
    (folder / "split.json").write_text(json.dumps({"train": split["train"], "test": split["train"]}))
    with pytest.raises(UserError, match="is in train and in test"):
        load_dataset("imagenet-r", str(tmp_path))
    (folder / "split.json").write_text("[]")
    with pytest.raises(UserError, match="no split file"):
        load_dataset("imagenet-r", str(tmp_path))


def test_the_first_process_alone_keeps_the_split_beside_the_data(tmp_path, small, monkeypatch):
    small("imagenet-r", 4, 16, 4)
    folder = write(tmp_path, imagenet_r_files()) / "imagenet-r"
    found = {}
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        found[rank] = list(load_dataset("imagenet-r", str(tmp_path))[0].images)
        assert (folder / "split.json").exists() == (rank == "0")
    assert found["0"] == found["1"]


def test_the_whole_imagenet_r_gives_24000_and_6000():
    class Files:
        def names(self):
            return [f"n{c:03d}/{i}.jpg" for c in range(200) for i in range(150)]
    entries = datasets.imagenet_r_entries(Files())
    assert sum(not e.test for e in entries) == 24_000 and sum(e.test for e in entries) == 6_000


def test_resisc45_is_split_per_class(tmp_path, small):
    small("resisc45", 2, 8, 2)
    write(tmp_path / "resisc45", {f"NWPU-RESISC45/{name}/{name}_{i}.jpg": picture(i) for name in ("airport", "beach") for i in range(5)})
    train, test, _ = load_dataset("resisc45", str(tmp_path))
    assert np.bincount(train.labels).tolist() == [4, 4] and np.bincount(test.labels).tolist() == [1, 1]


def test_domainnet_keeps_the_lists_numbers_and_its_domain_order(tmp_path, small):
    small("domainnet", 3, 12, 6, domains=("real", "clipart"))
    write(tmp_path / "domainnet", copies.domainnet())
    train, test, names = load_dataset("domainnet", str(tmp_path))
    assert names == ["ant", "The_Bee", "cat"], "numbers of the lists, not sorted names"
    assert train.domains.tolist() == [0] * 6 + [1] * 6 and test.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert train.images[0].parts[-3] == "real" and dataset_info("domainnet").domains[0] == "real"


def test_train_and_val_folders_come_first_and_other_counts_are_warned_about(tmp_path, small, caplog):
    small("cub200_224", 2, 2, 4)
    images = ("train/a/0", "train/a/1", "train/b/0", "train/b/1", "val/a/0", "val/b/0")
    write(tmp_path / "cub_200", {f"{name}.png": picture(0) for name in images})
    with caplog.at_level(logging.WARNING, logger="slca"):
        train, test, _ = load_dataset("cub200_224", str(tmp_path))
    assert (len(train), len(test)) == (4, 2) and "train and test are swapped" in caplog.text


def test_a_benchmark_that_is_not_there_says_where_to_get_it_and_what_to_run(tmp_path):
    with pytest.raises(UserError) as error:
        load_dataset("cub200_224", str(tmp_path))
    assert "python main.py prepare cub200_224 --source" in str(error.value) and "vision.caltech.edu" in str(error.value)
    (tmp_path / "cub_200").mkdir()
    with pytest.raises(UserError, match=r"images\.txt is missing"):
        load_dataset("cub200_224", str(tmp_path))


# Preparation ---------------------------------------------------------------------------------------------------

def test_cub_becomes_train_and_val_folders_and_the_source_stays(tmp_path, small):
    small("cub200_224", 3, 6, 3)
    source = tar(tmp_path / "CUB_200_2011.tgz", copies.cub())
    before = source.read_bytes()
    folder = prepare("cub200_224", source, tmp_path / "data")
    assert folder == tmp_path / "data" / "cub_200" and not (tmp_path / "data" / "cub_200.partial").exists()
    classes = ("001.Albatross", "002.Auklet", "003.Wren")
    assert tree(folder) == {f"{'val' if i == 1 else 'train'}/{c}/bird_{i}.png" for c in classes for i in range(3)}
    assert (folder / "train/002.Auklet/bird_0.png").read_bytes() == picture(4)
    assert source.read_bytes() == before
    assert load_dataset("cub200_224", str(tmp_path / "data"))[2] == ["001.Albatross", "002.Auklet", "003.Wren"]


def test_cars_are_prepared_from_a_folder_of_archives(tmp_path, small):
    small("cars196_224", 2, 4, 2)
    files = cars_files()
    source = tmp_path / "downloads"
    source.mkdir()
    for part in ("cars_train", "cars_test", "devkit"):
        tar(source / f"{part}.tgz", {name: data for name, data in files.items() if name.startswith(part + "/")})
    (source / "cars_test_annos_withlabels.mat").write_bytes(files["cars_test_annos_withlabels.mat"])
    folder = prepare("cars196_224", source, tmp_path / "data")
    assert tree(folder) == {"train/002.Audi TT/00001.jpg", "train/001.Ram C-V Van/00002.jpg", "train/001.Ram C-V Van/00003.jpg",
                            "train/002.Audi TT/00004.jpg", "val/001.Ram C-V Van/00001.jpg", "val/002.Audi TT/00002.jpg"}


def test_imagenet_r_is_prepared_with_the_split_that_loading_makes(tmp_path, small):
    small("imagenet-r", 4, 16, 4)
    write(tmp_path / "read", imagenet_r_files())
    prepare("imagenet-r", tar(tmp_path / "imagenet-r.tar", imagenet_r_files(), "w"), tmp_path / "data")
    in_place, prepared = (load_dataset("imagenet-r", str(tmp_path / name)) for name in ("read", "data"))
    for ours, theirs in zip(in_place[:2], prepared[:2], strict=True):
        assert sorted((p.parent.name, p.name) for p in ours.images) == sorted((p.parent.name, p.name) for p in theirs.images)
    assert len(json.loads((tmp_path / "data/imagenet-r/split.json").read_text())["train"]) == 16


def test_domainnet_is_prepared_in_its_own_layout_from_zips_and_lists(tmp_path, small):
    small("domainnet", 3, 12, 6, domains=("real", "clipart"))
    source, files = tmp_path / "downloads", copies.domainnet()
    source.mkdir()
    for domain in ("real", "clipart"):
        zipped(source / f"{domain}.zip", {name: data for name, data in files.items() if name.startswith(domain + "/")})
    write(source, {name: data for name, data in files.items() if name.endswith(".txt")})
    folder = prepare("domainnet", source, tmp_path / "data")
    assert tree(folder) == set(files)


@pytest.mark.parametrize("name, files", [
    ("resisc45", {f"NWPU-RESISC45/{c}/{c}_{i}.jpg": picture(i) for c in ("airport", "beach") for i in range(5)}),
    ("sketch345_224", copies.domainnet(("sketch",))),
    ("imagenet100", {f"x/{s}/{c}/{i}.JPEG": picture(i) for s in ("train", "val") for c in ("n01", "n02") for i in range(2)}),
])
def test_the_other_benchmarks_are_prepared_from_a_zip(tmp_path, small, name, files):
    small(name, 3 if name == "sketch345_224" else 2, None, None)
    folder = prepare(name, zipped(tmp_path / "a.zip", files), tmp_path / "data")
    assert {path.split("/")[0] for path in tree(folder)} == {"train", "val"} and len(tree(folder)) == sum("/" in n for n in files)
    assert len(load_dataset(name, str(tmp_path / "data"))[0]) > 0


def test_torchvisions_files_are_put_where_it_looks(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "_load", lambda info, root: None)
    names = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    source = write(tmp_path / "debian", {f"{name}.gz": gzip.compress(name.encode()) for name in names})
    prepare("fashion_mnist", source, tmp_path / "data")
    assert tree(tmp_path / "data") == {f"FashionMNIST/raw/{name}" for name in names}
    assert (tmp_path / "data/FashionMNIST/raw" / names[0]).read_bytes() == names[0].encode()
    cifar = {f"cifar-100-python/{name}": b"x" for name in ("train", "test", "meta")}
    prepare("cifar100_224", tar(tmp_path / "cifar-100-python.tar.gz", cifar), tmp_path / "c")
    assert tree(tmp_path / "c") == set(cifar)


def test_preparing_again_only_checks(tmp_path, small, monkeypatch):
    small("cub200_224", 3, 6, 3)
    source = tar(tmp_path / "cub.tgz", copies.cub())
    folder = prepare("cub200_224", source, tmp_path)
    source.unlink()
    assert prepare("cub200_224", source, tmp_path) == folder


def test_an_interrupted_preparation_goes_on_where_it_stopped(tmp_path, small, monkeypatch):
    small("cub200_224", 3, 6, 3)
    source, written = tar(tmp_path / "cub.tgz", copies.cub()), []
    whole = prepare_module._write_whole

    def stop_after_four(file, target):
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(target)
        whole(file, target)
    monkeypatch.setattr(prepare_module, "_write_whole", stop_after_four)
    with pytest.raises(KeyboardInterrupt):
        prepare("cub200_224", source, tmp_path)
    assert not (tmp_path / "cub_200").exists() and len(tree(tmp_path / "cub_200.partial")) == 4
    write(tmp_path / "cub_200.partial", {"train/of_another_attempt.png": b"x"})
    again = []
    monkeypatch.setattr(prepare_module, "_write_whole", lambda file, target: (again.append(target), whole(file, target)))
    assert len(tree(prepare("cub200_224", source, tmp_path))) == 9 and len(again) == 5


@pytest.mark.parametrize("name", ["../../outside.png", "/etc/outside.png", "a/../../outside.png", "C:/outside.png", "..\\outside.png"])
@pytest.mark.parametrize("make", [tar, zipped])
def test_an_archive_that_would_leave_the_target_is_refused(tmp_path, small, name, make):
    small("cub200_224", 3, 6, 3)
    source = make(tmp_path / f"evil.{'tgz' if make is tar else 'zip'}", {**copies.cub(), name: b"x"})
    with pytest.raises(UserError, match="unsafe path"):
        prepare("cub200_224", source, tmp_path / "data")
    assert tree(tmp_path) == {source.name}


def test_annotations_cannot_name_a_way_out(tmp_path, small):
    small("cub200_224", 3, 6, 3)
    files = copies.cub("")
    files["classes.txt"] = files["classes.txt"].replace(b"001.Albatross", b"../../001.Albatross")
    with pytest.raises(UserError, match="no plain name"):
        prepare("cub200_224", zipped(tmp_path / "evil.zip", files), tmp_path / "data")


def test_links_are_neither_followed_nor_made(tmp_path, small):
    small("cub200_224", 3, 6, 3)
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture(0))
    folder = write(tmp_path / "source", copies.cub(""))
    victim = folder / "images/001.Albatross/bird_0.png"
    victim.unlink()
    victim.symlink_to(secret)
    with pytest.raises(UserError, match="1 of 9 listed images are missing"):
        prepare("cub200_224", folder, tmp_path / "data")
    with tarfile.open(tmp_path / "links.tgz", "w:gz") as archive:
        for name, data in copies.cub().items():
            item = tarfile.TarInfo(name)
            if name.endswith("001.Albatross/bird_0.png"):
                item.type, item.linkname = tarfile.SYMTYPE, str(secret)
                archive.addfile(item)
                continue
            item.size = len(data)
            archive.addfile(item, io.BytesIO(data))
    with pytest.raises(UserError, match="1 of 9 listed images are missing"):
        prepare("cub200_224", tmp_path / "links.tgz", tmp_path / "data")


def test_a_damaged_or_wrong_source_is_one_clear_message(tmp_path, small):
    small("cub200_224", 3, 6, 3)

    def message(source: Path) -> str:
        with pytest.raises(UserError) as error:
            prepare("cub200_224", source, tmp_path / "data")
        return str(error.value)
    whole = tar(tmp_path / "cub.tgz", copies.cub()).read_bytes()
    (tmp_path / "torn.tgz").write_bytes(whole[:len(whole) // 2])
    assert "damaged" in message(tmp_path / "torn.tgz")
    broken = bytearray(zipped(tmp_path / "cub.zip", copies.cub()).read_bytes())
    broken[60:90] = b"?" * 30
    (tmp_path / "broken.zip").write_bytes(broken)
    assert "damaged" in message(tmp_path / "broken.zip")
    (tmp_path / "text.zip").write_text("hello")
    assert "damaged" in message(tmp_path / "text.zip")
    (tmp_path / "page.html").write_text("not found")
    assert "no archive" in message(tmp_path / "page.html")
    assert "does not exist" in message(tmp_path / "nowhere.zip")
    assert "images.txt is missing" in message(zipped(tmp_path / "other.zip", {"a/b.png": b"x"}))
    few = copies.cub()
    del few["CUB_200_2011/images/003.Wren/bird_2.png"]
    assert "1 of 9 listed images are missing" in message(zipped(tmp_path / "few.zip", few))
    small("cub200_224", 3, 7, 3)
    assert "has 6 training images, expected 7" in message(tmp_path / "cub.tgz")
    small("cub200_224", 4, 6, 3)
    assert "has 3 classes, expected 4" in message(tmp_path / "cub.tgz")
    assert not os.path.exists(tmp_path / "data")


def test_sets_without_files_and_unknown_names_say_so(tmp_path):
    with pytest.raises(UserError, match="needs no preparation"):
        prepare("digits", tmp_path, tmp_path)
    with pytest.raises(UserError, match="did you mean 'cub200_224'"):
        prepare("cub200", tmp_path, tmp_path)
    (tmp_path / "cub_200").mkdir()
    with pytest.raises(UserError, match="exists but is not complete"):
        prepare("cub200_224", tmp_path, tmp_path)
