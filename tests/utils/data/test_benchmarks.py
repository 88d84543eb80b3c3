"""Every registered benchmark in files: prepared from a tiny official copy, read where it lies, dry-run, trained for one task."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torchvision

from models.tools.dry_run import describe_run
from tests.support import learn, make_config, make_learner
from tests.utils.data import official_copies as copies
from tests.utils.data.official_copies import tar, write, zipped
from utils.data import registry as datasets
from utils.data.benchmarks import BENCHMARKS
from utils.data.cards import Split
from utils.data.data_manager import DataManager
from utils.data.domain_sets import CDDB_HARD, CORE50, OFFICE_HOME
from utils.data.photo_sets import split_folders
from utils.data.prepare import prepare
from utils.data.registry import REGISTRY, load_dataset
from utils.errors import UserError
from utils.files import PROJECT


@dataclass(frozen=True)
class Tiny:
    """A tiny copy and what is in it."""

    files: Callable[[], copies.Files]
    classes: int
    train: int
    test: int
    first: str  # class
    split: str  # the name that a result gives its split
    domains: tuple[str, ...] = ()


PHOTOS = ("n01", "n02")
TINY = {
    "imagenet-r": Tiny(lambda: copies.class_folders("imagenet-r", PHOTOS), 2, 8, 2, "n01", "80/20 of all images, seed 0"),
    "cub200_224": Tiny(copies.cub, 3, 6, 3, "001.Albatross", "official"),
    "cub200_pilot": Tiny(lambda: copies.split_folders("cub", ("001.Wren", "002.Auk")), 2, 6, 4, "001.Wren", "LAMDA-PILOT"),
    "cars196_224": Tiny(copies.cars, 2, 4, 2, "001.Ram C-V Van", "official"),
    "resisc45": Tiny(lambda: copies.class_folders("NWPU-RESISC45", ("airplane", "airport")), 2, 8, 2, "airplane",
                     "80/20 per class, seed 0"),
    "sketch345_224": Tiny(lambda: copies.domainnet(("sketch",)), 3, 6, 3, "The_Bee", "official"),
    "imagenet100": Tiny(copies.imagenet, 2, 4, 4, "n01440764", ""),
    "imagenet1000": Tiny(copies.imagenet, 2, 4, 4, "n01440764", "official"),
    "imagenet-a": Tiny(lambda: copies.split_folders("imagenet-a", ("n01498041", "n01531178")), 2, 6, 4, "n01498041", "LAMDA-PILOT"),
    "objectnet": Tiny(lambda: copies.split_folders("objectnet", ("alarm clock", "basket")), 2, 6, 4, "alarm clock", "LAMDA-PILOT"),
    "omnibenchmark": Tiny(lambda: copies.split_folders("omnibenchmark", ("10", "4")), 2, 6, 4, "10", "LAMDA-PILOT"),
    "omnibenchmark1k": Tiny(lambda: copies.split_folders("omnibenchmark1k", ("0", "1")), 2, 6, 4, "0", "CaRE"),
    "vtab5": Tiny(copies.vtab, 19, 64, 22, "00.resisc45.airplane", "ours from the official layouts, seed 0"),
    "food101": Tiny(copies.food101, 2, 6, 2, "apple_pie", "official"),
    "aircraft": Tiny(copies.aircraft, 3, 6, 3, "001.F-A-18", "official (trainval / test)"),
    "flowers102": Tiny(copies.flowers, 3, 6, 6, "001.pink primrose", "official (train and valid / test)"),
    "pets": Tiny(copies.pets, 2, 6, 2, "01.Abyssinian", "official (trainval / test)"),
    "dtd": Tiny(copies.dtd, 2, 4, 2, "banded", "official, partition 1 (train and val / test)"),
    "eurosat": Tiny(copies.eurosat, 10, 40, 10, "AnnualCrop", "80/20 per class, seed 0"),
    "sun397": Tiny(copies.sun397, 2, 4, 4, "001.abbey", "official, partition 1"),
    "tiny_imagenet": Tiny(copies.tiny_imagenet, 2, 6, 4, "n01443537", "official (train / val)"),
    "inaturalist_mini": Tiny(copies.inaturalist_mini, 2, 6, 2, copies.WORM, "official (train_mini / val)"),
    "office_home": Tiny(copies.office_home, 2, 24, 8, "Alarm_Clock", "70/30 per class and domain, seed 0", OFFICE_HOME),
    "core50": Tiny(copies.core50, 3, 48, 18, "o01", "sessions 3, 7, 10 test", CORE50),
    "cddb_hard": Tiny(copies.cddb, 2, 20, 20, "0_real", "official (train / val)", CDDB_HARD),
    "domainnet": Tiny(copies.domainnet, 3, 12, 6, "ant", "official", ("real", "clipart")),
    "five_datasets": Tiny(copies.five_datasets, 50, 90, 50, "00 CIFAR10", "official, of each set"),
}
names = pytest.mark.parametrize("name", TINY)


def shrunk(name: str) -> datasets.Registered:
    """The registry's entry with the numbers of the tiny copy, and pictures of 16 pixels."""
    tiny, entry = TINY[name], REGISTRY[name]
    announced = (None if entry.info.train_count is None else tiny.train, None if entry.info.test_count is None else tiny.test)
    if name == "vtab5":  # the copy has no published split
        announced = entry.info.train_count, entry.info.test_count
    info = replace(entry.info, num_classes=tiny.classes, train_count=announced[0], test_count=announced[1], image_size=16,
                   domains=tiny.domains)
    load = (lambda root: datasets._load_domainnet(info, root)) if name == "domainnet" else entry.load
    return replace(entry, info=info, load=load)


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Every set where its files lie as they were unpacked ("official"), and prepared from them ("prepared")."""
    place, patch = tmp_path_factory.mktemp("benchmarks"), pytest.MonkeyPatch()
    for module in (torchvision.datasets.cifar, torchvision.datasets.svhn):  # the tiny files are not the originals
        patch.setattr(module, "check_integrity", lambda *args: True)
    for name, tiny in TINY.items():
        patch.setitem(REGISTRY, name, shrunk(name))
        prepare(name, write(place / "downloads" / name, tiny.files()), place / "prepared")
        if name != "five_datasets":
            write(place / "official" / REGISTRY[name].info.folder, tiny.files())
    yield place
    patch.undo()


def test_every_benchmark_in_files_has_a_tiny_copy():
    assert {row.name for row in BENCHMARKS} <= set(TINY)


@names
def test_a_tiny_official_copy_is_prepared_with_its_classes_numbers_and_split(roots, name):
    tiny = TINY[name]
    train, test, classes = load_dataset(name, str(roots / "prepared"))
    assert (len(train), len(test), len(classes), classes[0]) == (tiny.train, tiny.test, tiny.classes, tiny.first)
    assert train.split == (f"{tiny.split}, {tiny.train} / {tiny.test}" if tiny.split else "")
    assert set(train.labels.tolist()) == set(range(tiny.classes)) and not list((roots / "prepared").glob("*.partial"))
    if tiny.domains:
        assert set(train.domains.tolist()) == set(test.domains.tolist()) == set(range(len(tiny.domains)))


@pytest.mark.parametrize("name", [name for name in TINY if name not in ("five_datasets", "cddb_hard", "domainnet")])
def test_the_official_layout_is_read_where_it_lies_with_the_same_images_and_classes(roots, name):
    in_place, prepared = (load_dataset(name, str(roots / kind)) for kind in ("official", "prepared"))
    assert in_place[2] == prepared[2] and in_place[0].split == prepared[0].split
    for ours, theirs in zip(in_place[:2], prepared[:2], strict=True):
        found = [sorted((int(label), path.name) for label, path in zip(part.labels, part.images, strict=True)) for part in (ours, theirs)]
        assert found[0] == found[1]


@names
def test_it_is_dry_run_and_trained_for_one_task_with_a_tiny_model(roots, name):
    tiny = TINY[name]
    stream = {"scenario": "domain", "shuffle": False} if tiny.domains else {"init_cls": 2, "increment": max(1, tiny.classes - 2)}
    config = make_config(dataset=name, data_root=str(roots / "prepared"), batch_size=16, num_workers=0, **stream)
    assert f"on {name}, dry run" in describe_run(config)
    data = DataManager(config, seed=1993)
    learner = make_learner(config, data)
    learn(learner, [0])
    assert data.split == load_dataset(name, str(roots / "prepared"))[0].split
    assert 0 <= learner.evaluate(0).top1 <= 100 and len(learner.gaussians) == data.stream.task_sizes[0]


def test_the_worked_example_of_the_docs_is_prepared_and_loaded(tmp_path):
    block, = re.findall(r"```python\n(.*?)```", (PROJECT / "docs/datasets.md").read_text(), flags=re.DOTALL)
    try:
        exec(compile(block, "docs/datasets.md", "exec"), {})
        files = {f"{name}/{i}.jpg": copies.picture(i) for name in ("ant", "bee") for i in range(25)}
        files |= {"train.txt": copies.text(*(path for i, path in enumerate(files) if i % 5)),
                  "test.txt": copies.text(*(path for i, path in enumerate(files) if not i % 5))}
        prepare("my_set", write(tmp_path / "source", files), tmp_path)
        assert load_dataset("my_set", str(tmp_path))[0].split == "official, 40 / 10"
    finally:
        REGISTRY.pop("my_set", None)


# Splits ------------------------------------------------------------------------------------------------------

def test_another_division_of_the_same_numbers_is_not_called_by_the_published_name(roots, tmp_path):
    files = TINY["imagenet-r"].files()
    images = sorted(name.removeprefix("imagenet-r/") for name in files if name.endswith(".jpg"))
    files["imagenet-r/split.json"] = f'{{"train": {images[2:]}, "test": {images[:2]}}}'.replace("'", '"').encode()
    folder = write(tmp_path, files) / "imagenet-r"
    assert load_dataset("imagenet-r", str(tmp_path))[0].split.startswith("8 / 2, another draw of the published numbers (test images ")
    (folder / "split.json").unlink()
    assert load_dataset("imagenet-r", str(tmp_path))[0].split == "80/20 of all images, seed 0, 8 / 2"


def test_imagenet_a_from_the_official_archive_has_a_split_of_ours(roots, tmp_path):
    write(tmp_path, copies.class_folders("imagenet-a", ("n01498041", "n01531178"), name="0.00{1}_x.jpg"))
    train, test, _ = load_dataset("imagenet-a", str(tmp_path))
    assert train.split == "80/20 per class, seed 0, 8 / 2" and np.bincount(test.labels).tolist() == [1, 1]


def test_a_set_that_is_only_handed_around_split_says_what_is_missing():
    with pytest.raises(UserError, match=r"ObjectNet: no train/<class>/ and test/<class>/ found.*split\.json"):
        split_folders("ObjectNet")(InMemory({"objectnet-1.0/images/air_freshener/0.png": b""}))


def test_vtab_takes_pilots_folders_before_the_official_layouts(roots, tmp_path, monkeypatch):
    monkeypatch.setitem(REGISTRY, "vtab5", replace(REGISTRY["vtab5"], info=replace(
        REGISTRY["vtab5"].info, num_classes=2, train_count=6, test_count=4)))
    write(tmp_path / "vtab", copies.split_folders("vtab", ("10", "11")))
    assert load_dataset("vtab5", str(tmp_path))[0].split == "LAMDA-PILOT, 6 / 4"


def test_a_class_with_too_few_images_is_told_where_all_have_as_many(tmp_path, monkeypatch):
    entry = shrunk("food101")
    card = replace(entry.card, splits=(Split("official", 6, 2, (3, 1)),))
    monkeypatch.setitem(REGISTRY, "food101", replace(entry, card=card))
    files = copies.food101()
    files["food-101/images/baby_back_ribs/100x.jpg"] = copies.picture(1)
    files["food-101/meta/train.json"] = b'{"apple_pie": ["apple_pie/0", "apple_pie/1"], "baby_back_ribs": ["baby_back_ribs/100", ' \
        b'"baby_back_ribs/101", "baby_back_ribs/102", "baby_back_ribs/100x"]}'
    with pytest.raises(UserError, match=r"class 'apple_pie' has 2 training and 1 test images, expected 3 and 1 \(and 1 more"):
        prepare("food101", write(tmp_path / "source", files), tmp_path / "data")


def test_numbers_that_no_public_code_confirms_are_warned_about_and_published_ones_refused(tmp_path, monkeypatch, caplog):
    for name in ("imagenet-a", "cub200_pilot"):
        entry = shrunk(name)
        monkeypatch.setitem(REGISTRY, name, replace(entry, info=replace(entry.info, train_count=7, test_count=5)))
    with caplog.at_level(logging.WARNING, logger="slca"):
        prepare("imagenet-a", write(tmp_path / "a", TINY["imagenet-a"].files()), tmp_path)
    assert "6 training and 4 test images; tables of papers name 7 and 5" in caplog.text
    with pytest.raises(UserError, match="has 6 training images, expected 7"):
        prepare("cub200_pilot", write(tmp_path / "b", TINY["cub200_pilot"].files()), tmp_path)


# Layouts -----------------------------------------------------------------------------------------------------

class InMemory:
    """Files in memory, for a reader."""

    def __init__(self, files: copies.Files) -> None:
        self.files = files

    def names(self) -> list[str]:
        return list(self.files)

    def read(self, name: str) -> bytes:
        return self.files[name]


@pytest.mark.parametrize("name, break_it, told", [
    ("food101", {"food-101/images/apple_pie/1.jpg": None}, "1 of 8 listed images are missing, the first is .*apple_pie/1.jpg"),
    ("food101", {"food-101/meta/train.json": b"[]"}, r"food-101/meta/train.json: allowed: \{class: \[paths\]\}"),
    ("food101", {"food-101/meta/train.json": b"{"}, "is no JSON file"),
    ("aircraft", {"fgvc-aircraft-2013b/data/variants.txt": b"DH-82\n"}, "got the variant 'F/A-18'"),
    ("aircraft", {"fgvc-aircraft-2013b/data/images_variant_test.txt": b"1000002\n"}, "line 1: got '1000002', allowed: 2 columns"),
    ("flowers102", {"setid.mat": b"x"}, "setid.mat cannot be read as a MATLAB file"),
    ("flowers102", {"imagelabels.mat": copies.matlab({"labels": [1, 2]})}, "got image 5 of class 0"),
    ("pets", {"annotations/test.txt": b"Abyssinian_103 one 1 1\n"}, "got the class 'one'"),
    ("dtd", {"dtd/labels/val1.txt": None}, "DTD: the file labels/val1.txt is missing"),
    ("sun397", {"Training_01.txt": None}, "SUN397 .its split is in Partitions.zip.: the file Training_01.txt is missing"),
    ("tiny_imagenet", {"tiny-imagenet-200/val/images/val_3.JPEG": None}, "1 of 10 listed images are missing"),
    ("core50", {name: None for name in copies.core50() if "/s11/" in name}, "CORe50: no images of s11 found"),
    ("office_home", {name: None for name in copies.office_home() if "/Real World/" in name}, "Office-Home: no images of Real_World found"),
    ("cars196_224", {"cars_annos_test_withlabels.mat": None}, "cars_test_annos_withlabels.mat is missing"),
])
def test_what_is_missing_or_wrong_in_an_official_copy_is_one_sentence(name, break_it, told):
    files = {path: data for path, data in {**TINY[name].files(), **break_it}.items() if data is not None}
    with pytest.raises(UserError, match=told):
        REGISTRY[name].entries(InMemory(files))


def test_torchvision_reads_the_same_images_and_labels_from_its_own_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.flowers102, "check_integrity", lambda *args: True)
    kinds = {"food101": ("Food101", {"split": "train"}, ""), "aircraft": ("FGVCAircraft", {"split": "trainval"}, ""),
             "pets": ("OxfordIIITPet", {"split": "trainval"}, "oxford-iiit-pet/"),
             "flowers102": ("Flowers102", {"split": "test"}, "flowers-102/")}
    for name, (kind, which, prefix) in kinds.items():
        files = {f"{prefix}{path}": data for path, data in TINY[name].files().items() if not path.endswith(".JPG")}
        files |= {path.replace(".JPG", ".jpg"): data for path, data in TINY[name].files().items() if path.endswith(".JPG")}
        theirs = getattr(torchvision.datasets, kind)(str(write(tmp_path, files)), **which)
        theirs_images = [Path(path).name for path in (theirs._images if name == "pets" else theirs._image_files)]
        ours = [e for e in REGISTRY[name].entries(InMemory(files)) if e.test == (which["split"] == "test")]
        labels = {label: i for i, label in enumerate(sorted({e.label for e in ours}))}
        assert sorted((Path(e.path).name, labels[e.label]) for e in ours) == sorted(zip(theirs_images, theirs._labels, strict=True))


def test_archives_as_they_are_handed_around_are_read_without_unpacking(tmp_path, monkeypatch):
    for name, files in (("pets", copies.pets()), ("tiny_imagenet", copies.tiny_imagenet())):
        monkeypatch.setitem(REGISTRY, name, shrunk(name))
        source = tmp_path / name
        source.mkdir()
        if name == "tiny_imagenet":
            zipped(source / "tiny-imagenet-200.zip.1", files)
        for part in ("images", "annotations") if name == "pets" else ():
            tar(source / f"{part}-mirror.tar.gz", {path: data for path, data in files.items() if path.startswith(part)})
        assert prepare(name, source, tmp_path / "data").is_dir()
