"""Tiny copies of the official layouts, as the archives have them: few classes and images, and what else lies in them.

A function that is named after a set gives path -> bytes. Pictures are PNG of 6 x 5 pixels whatever their ending says.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from utils.data.domain_sets import CDDB_HARD, CORE50, CORE50_TEST
from utils.data.photo_sets import EUROSAT_CLASSES

Files = dict[str, bytes]
WORM = "00000_Animalia_Annelida_Clitellata_Haplotaxida_Lumbricidae_Lumbricus_terrestris"


def picture(seed: int, size: tuple[int, int] = (6, 5), kind: str = "PNG", grey: bool = False) -> bytes:
    out = io.BytesIO()
    shape = size if grey else (*size, 3)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(out, kind)
    return out.getvalue()


def matlab(content: dict) -> bytes:
    from scipy.io import savemat
    out = io.BytesIO()
    savemat(out, content)
    return out.getvalue()


def text(*lines: str) -> bytes:
    return ("\n".join(lines) + "\n").encode()


def write(root: Path, files: Files) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def tar(path: Path, files: Files, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            item = tarfile.TarInfo(name)
            item.size = len(data)
            archive.addfile(item, io.BytesIO(data))
    return path


def zipped(path: Path, files: Files) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def split_folders(top: str, classes: tuple[str, ...], train: int = 3, test: int = 2) -> Files:
    """LAMDA-PILOT's zips; macOS leaves its own folder, a README lies inside."""
    files = {f"{top}/{part}/{name}/{i}.jpg": picture(10 * c + i) for c, name in enumerate(classes)
             for part, count in (("train", train), ("test", test)) for i in range(count)}
    return files | {f"{top}/README.txt": b"x", f"__MACOSX/{top}/train/{classes[0]}/._0.jpg": b"x"}


def cub(top: str = "CUB_200_2011/") -> Files:
    """Three classes with 2 training images and 1 test image each; image 2 of each class is the test image."""
    classes = ["001.Albatross", "002.Auklet", "003.Wren"]
    images = [(c * 3 + i + 1, c, f"{name}/bird_{i}.png") for c, name in enumerate(classes) for i in range(3)]
    files = {f"{top}images/{path}": picture(number) for number, _, path in images}
    files[f"{top}images.txt"] = text(*(f"{n} {path}" for n, _, path in images))
    files[f"{top}image_class_labels.txt"] = text(*(f"{n} {c + 1}" for n, c, _ in images))
    files[f"{top}train_test_split.txt"] = text(*(f"{n} {int(n % 3 != 2)}" for n, _, _ in images))
    files[f"{top}classes.txt"] = text(*(f"{c + 1} {name}" for c, name in enumerate(classes)))
    return files | {f"{top}README": b"x", "attributes.txt": b"x"}


def cars(test_labels: str = "cars_annos_test_withlabels.mat") -> Files:
    """The devkit has a cars_test_annos.mat without labels; a mirror calls the file with labels as here, its source
    cars_test_annos_withlabels.mat.
    """
    files = {f"cars_train/{i:05d}.jpg": picture(i) for i in (1, 2, 3, 4)} | {f"cars_test/{i:05d}.jpg": picture(50 + i) for i in (1, 2)}
    kind = [("bbox_x1", "i4"), ("class", "i4"), ("fname", "O")]
    train = np.array([(0, c, f"{i:05d}.jpg") for i, c in ((1, 2), (2, 1), (3, 1), (4, 2))], dtype=kind)
    test = np.array([(0, c, f"{i:05d}.jpg") for i, c in ((1, 1), (2, 2))], dtype=kind)
    files["devkit/cars_meta.mat"] = matlab({"class_names": np.array(["Ram C/V Van", "Audi TT"], dtype=object)})
    files["devkit/cars_train_annos.mat"] = matlab({"annotations": train})
    unlabelled = np.array([(0, f"{i:05d}.jpg") for i in (1, 2)], dtype=[("bbox_x1", "i4"), ("fname", "O")])
    files["devkit/cars_test_annos.mat"] = matlab({"annotations": unlabelled})
    files[test_labels] = matlab({"annotations": test})
    return files | {"devkit/README.txt": b"x"}


def class_folders(top: str, classes: tuple[str, ...], images: int = 5, name: str = "{}_{}.jpg") -> Files:
    return {f"{top}/{c}/{name.format(c, i)}": picture(10 * n + i) for n, c in enumerate(classes) for i in range(images)} | {
        f"{top}/README.txt": b"x"}


def food101() -> Files:
    """Lists as JSON and as text; one image with an upper-case ending."""
    classes, lists = ("apple_pie", "baby_back_ribs"), {"train": {}, "test": {}}
    files: Files = {"food-101/README.txt": b"x", "food-101/license_agreement.txt": b"x"}
    for n, name in enumerate(classes):
        numbers = [100 * n + i for i in range(4)]
        lists["train"][name], lists["test"][name] = ([f"{name}/{i}" for i in part] for part in (numbers[:3], numbers[3:]))
        files |= {f"food-101/images/{name}/{i}.{'JPG' if i == 0 else 'jpg'}": picture(i) for i in numbers}
    for part, found in lists.items():
        files[f"food-101/meta/{part}.json"] = json.dumps(found).encode()
        files[f"food-101/meta/{part}.txt"] = text(*(path for paths in found.values() for path in paths))
    return files


def aircraft() -> Files:
    """A variant with a slash and one with a space."""
    variants, base = ("F/A-18", "DH-82", "A340-200 x"), "fgvc-aircraft-2013b/data/"
    rows = [(f"{1_000_000 + 10 * n + i}", variant, "test" if i == 2 else "trainval")
            for n, variant in enumerate(variants) for i in range(3)]
    files = {f"{base}images/{image}.jpg": picture(int(image) % 97) for image, _, _ in rows}
    for part in ("trainval", "test"):
        files[f"{base}images_variant_{part}.txt"] = text(*(f"{image} {variant}" for image, variant, own in rows if own == part))
    return files | {f"{base}variants.txt": text(*variants), f"{base}README": b"x", f"{base}images_family_test.txt": b"x y\n"}


def flowers(classes: int = 3) -> Files:
    labels = np.repeat(np.arange(1, classes + 1), 4)
    ids = np.arange(1, len(labels) + 1).reshape(classes, 4)
    return {"imagelabels.mat": matlab({"labels": labels}),
            "setid.mat": matlab({"trnid": ids[:, 0], "valid": ids[:, 1], "tstid": ids[:, 2:].ravel()}),
            **{f"jpg/image_{i:05d}.jpg": picture(i) for i in ids.ravel().tolist()}}


def pets(breeds: tuple[str, ...] = ("Abyssinian", "american_bulldog")) -> Files:
    """images/ holds stray .mat files; annotations/ pictures of the same names and macOS files."""
    files: Files = {"images/Abyssinian_100.mat": b"x", "annotations/README": b"x", "annotations/list.txt": b"#Image CLASS-ID\n"}
    lists: dict[str, list[str]] = {"trainval": [], "test": []}
    for n, breed in enumerate(breeds, start=1):
        for i in range(4):
            image = f"{breed}_{100 + i}"
            files |= {f"images/{image}.jpg": picture(10 * n + i), f"annotations/trimaps/{image}.png": picture(0, grey=True),
                      f"annotations/trimaps/._{image}.png": b"x"}
            lists["test" if i == 3 else "trainval"].append(f"{image} {n} {1 + n % 2} {n}")
    return files | {f"annotations/{part}.txt": text(*lines) for part, lines in lists.items()}


def dtd(classes: tuple[str, ...] = ("banded", "blotchy")) -> Files:
    files: Files = {"dtd/labels/labels_joint_anno.txt": b"x", "dtd/imdb/imdb.mat": b"x"}
    for place, part in enumerate(("train", "val", "test")):
        files |= {f"dtd/images/{c}/{c}_{place:04d}.jpg": picture(10 * n + place) for n, c in enumerate(classes)}
        for partition in (1, 2):
            files[f"dtd/labels/{part}{partition}.txt"] = text(*(f"{c}/{c}_{place:04d}.jpg" for c in classes))
    return files


def eurosat() -> Files:
    return class_folders("2750", tuple(sorted(EUROSAT_CLASSES))) | {"2750/.DS_Store": b"x"}


def sun397() -> Files:
    """A class within a class; images that no partition lists; the partitions are an archive of their own."""
    classes = ("/a/abbey", "/a/apartment_building/outdoor")
    files = {f"SUN397{c}/sun_{n}{i}.jpg": picture(10 * n + i) for n, c in enumerate(classes) for i in range(5)}
    files["SUN397/ClassName.txt"] = text(*classes)
    files["SUN397/README.txt"] = b"x"
    files["Training_01.txt"] = text(*(f"{c}/sun_{n}{i}.jpg" for n, c in enumerate(classes) for i in (0, 1)))
    files["Testing_01.txt"] = text(*(f"{c}/sun_{n}{i}.jpg" for n, c in enumerate(classes) for i in (2, 3)))
    return files


def tiny_imagenet() -> Files:
    """Classes are wnids, endings upper-case; test/ has no labels."""
    wnids, top = ("n01443537", "n01629819"), "tiny-imagenet-200/"
    files = {f"{top}train/{w}/images/{w}_{i}.JPEG": picture(10 * n + i) for n, w in enumerate(wnids) for i in range(3)}
    files |= {f"{top}train/{w}/{w}_boxes.txt": b"x" for w in wnids}
    files |= {f"{top}val/images/val_{i}.JPEG": picture(90 + i) for i in range(4)} | {f"{top}test/images/test_0.JPEG": picture(99)}
    files[f"{top}val/val_annotations.txt"] = text(*(f"val_{i}.JPEG\t{wnids[i % 2]}\t0\t32\t44\t62" for i in range(4)))
    return files | {f"{top}wnids.txt": text(*wnids), f"{top}words.txt": b"n01443537\tgoldfish, Carassius auratus\n"}


def inaturalist_mini() -> Files:
    classes = (WORM, "00001_Animalia_Annelida_Polychaeta_Sabellida_Sabellidae_Sabella_spallanzanii")
    return {f"{part}/{c}/{part[0]}{n}{i}.jpg": picture(10 * n + i) for part, count in (("train_mini", 3), ("val", 1))
            for n, c in enumerate(classes) for i in range(count)}


def vtab() -> Files:
    """The five official layouts side by side, two classes of each but EuroSAT, which has its ten."""
    return class_folders("NWPU-RESISC45", ("airplane", "airport"), name="{}_{:03d}.jpg") | dtd() | pets() | class_folders(
        "EuroSAT/2750", tuple(sorted(EUROSAT_CLASSES))) | {f"flowers/{path}": data for path, data in flowers().items()}


def imagenet(parts: tuple[str, ...] = ("train", "val")) -> Files:
    return {f"ILSVRC/{part}/{w}/{w}_{i}.JPEG": picture(10 * n + i) for part in parts for n, w in enumerate(("n01440764", "n01443537"))
            for i in range(2)}


def office_home() -> Files:
    """The domain "Real World" has a space; a table of all images lies inside."""
    top = "OfficeHomeDataset_10072016"
    files = {f"{top}/{domain}/{c}/{i:05d}.jpg": picture(10 * len(domain) + i) for domain in ("Art", "Clipart", "Product", "Real World")
             for c in ("Alarm_Clock", "Backpack") for i in range(4)}
    return files | {f"{top}/ImageInfo.csv": b"x", f"{top}/imagelist.txt": b"x"}


def core50() -> Files:
    return {f"core50_128x128/{session}/o{o}/C_{session[1:]:>02}_{o:02d}_{i:03d}.png": picture(100 * o + i)
            for session in CORE50 + CORE50_TEST for o in (1, 2, 10) for i in range(2)}


def cddb() -> Files:
    """The archive's other generators are there too; some have classes of their own."""
    files = {f"CDDB/{generator}/{part}/{label}/{i:03d}.png": picture(i) for generator in CDDB_HARD for part in ("train", "val")
             for label in ("0_real", "1_fake") for i in range(2)}
    return files | {f"CDDB/cyclegan/{part}/horse/0_real/0.png": picture(0) for part in ("train", "val")}


def domainnet(domains: tuple[str, ...] = ("real", "clipart")) -> Files:
    files: Files = {}
    for domain in domains:
        lists: dict[str, list[str]] = {"train": [], "test": []}
        for label, name in enumerate(("ant", "The_Bee", "cat")):
            for i in range(3):
                path = f"{domain}/{name}/{domain}_{label}_{i}.jpg"
                files[path] = picture(10 * label + i)
                lists["test" if i == 2 else "train"].append(f"{path} {label}")
        files |= {f"{domain}_{part}.txt": text(*lines) for part, lines in lists.items()}
    return files


def five_datasets() -> Files:
    """MNIST and Fashion-MNIST name their files alike; SVHN writes 10 for 0; some of notMNIST's images are damaged."""
    labels = list(range(10))
    batch = pickle.dumps({"data": np.zeros((10, 3072), np.uint8), "labels": labels})
    files = {f"cifar-10-batches-py/{name}": batch for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")}
    files["cifar-10-batches-py/batches.meta"] = pickle.dumps({"label_names": [str(i) for i in labels]})
    for folder in ("mnist", "fashion"):
        for part in ("train", "t10k"):
            files[f"{folder}/{part}-images-idx3-ubyte.gz"] = gzip.compress(struct.pack(">iiii", 2051, 10, 28, 28) + bytes(10 * 784))
            files[f"{folder}/{part}-labels-idx1-ubyte.gz"] = gzip.compress(struct.pack(">ii", 2049, 10) + bytes(labels))
    for part in ("train", "test"):
        files[f"{part}_32x32.mat"] = matlab({"X": np.zeros((32, 32, 3, 10), np.uint8), "y": np.arange(1, 11)[:, None]})
        for c in "ABCDEFGHIJ":
            files[f"notMNIST/{part.title()}/{c}/{part}_{c}=.png"] = picture(ord(c), (28, 28), grey=True)
    return files | {"notMNIST/Train/A/damaged.png": b"x"}
