"""The official layouts of the papers' benchmarks: which file is which class, and in which split. Photo sets: utils/data/photo_sets.py."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from utils.data.annotations import cars_annotations, id_table, split_parts
from utils.data.duplicates import is_first_process
from utils.data.entries import (
    Entry,
    Files,
    above,
    class_folder_images,
    class_of,
    lines_of,
    one_file,
    present,
    split_of_all,
    split_per_class,
)
from utils.data.walk import is_image
from utils.errors import UserError
from utils.files import write_atomic

log = logging.getLogger("slca.data")

SPLIT_FILE = "split.json"  # beside ImageNet-R: {"train": [paths], "test": [paths]}


# The benchmarks ----------------------------------------------------------------------------------------------

def cub_entries(files: Files) -> list[Entry]:
    """CUB-200-2011: images.txt "id path", image_class_labels.txt "id class", train_test_split.txt "id is_training"."""
    names = files.names()
    base = above(one_file(names, "images.txt", "CUB-200-2011"))
    table = {key: id_table(base + f"{key}.txt", lines_of(files, base + f"{key}.txt"))
             for key in ("images", "image_class_labels", "train_test_split", "classes")}
    for key in ("image_class_labels", "train_test_split"):
        _no_id_lacks(table["images"], table[key], f"{base}{key}.txt", "image")
    _no_id_lacks(table["image_class_labels"].values(), table["classes"], f"{base}classes.txt", "class")
    odd = {flag for flag in table["train_test_split"].values() if flag not in ("0", "1")}
    if odd:
        raise UserError(f"{base}train_test_split.txt: got {min(odd)!r}, allowed: 0 (test image) or 1 (training image)")
    entries = [Entry(f"{base}images/{path}", table["classes"][table["image_class_labels"][image]], table["train_test_split"][image] == "0")
               for image, path in table["images"].items()]
    return present(entries, names)


def cars_entries(files: Files) -> list[Entry]:
    """Stanford Cars: the devkit's annotations of cars_train/ and cars_test/, or cars_annos.mat of car_ims/.

    Classes are named "<official number>.<name>", so that their sorted order is the official one.
    """
    names = files.names()
    if any(name.endswith("cars_annos.mat") for name in names):  # all images in one folder, with a flag
        file = one_file(names, "cars_annos.mat", "Cars-196")
        base = above(file)
        rows, classes = cars_annotations(file, files.read(file), ("relative_im_path", "class", "test"))
        return present([Entry(base + path, _car_class(int(number), classes, file), bool(int(test))) for path, number, test in rows], names)
    file = one_file(names, "cars_meta.mat", "Cars-196")
    _, classes = cars_annotations(file, files.read(file), ())
    entries, with_labels = [], [PurePosixPath(name).name for name in names if is_cars_test(name)]
    for annotation_file, folder, test in (("cars_train_annos.mat", "cars_train", False),
                                          (min(with_labels, default="cars_test_annos_withlabels.mat"), "cars_test", True)):
        file = one_file(names, annotation_file, "Cars-196")
        rows, _ = cars_annotations(file, files.read(file), ("fname", "class"))
        by_name = {PurePosixPath(name).name: name for name in names if PurePosixPath(name).parent.name == folder}
        entries += [Entry(by_name.get(name, f"{folder}/{name}"), _car_class(int(number), classes, file), test) for name, number in rows]
    return present(entries, names)


def is_cars_test(name: str) -> bool:
    """Whether this is the file with the test labels, which goes by several names; the devkit's cars_test_annos.mat has none."""
    name = PurePosixPath(name).name.lower()
    return name.endswith(".mat") and all(word in name for word in ("test", "annos", "withlabels"))


def imagenet_r_entries(files: Files) -> list[Entry]:
    """ImageNet-R has no official split: split.json if it is there, else METHOD's 80/20 by one permutation of all paths."""
    images = class_folder_images(files.names(), "ImageNet-R")
    given = given_split(files)
    return split_of_all(images) if given is None else given


def resisc_entries(files: Files) -> list[Entry]:
    """NWPU-RESISC45 has no official split: 80/20 of each class, by one permutation per class."""
    return split_per_class(class_folder_images(files.names(), "RESISC45"))


def sketch_entries(files: Files) -> list[Entry]:
    """DomainNet's domain sketch by its cleaned lists sketch_train.txt and sketch_test.txt."""
    return domainnet_entries(files, ["sketch"])


def domainnet_entries(files: Files, domains: Sequence[str]) -> list[Entry]:
    """Images named by the cleaned lists <domain>_train.txt and <domain>_test.txt, lines "<domain>/<class>/<file> label"."""
    names = files.names()
    by_tail = {"/".join(PurePosixPath(name).parts[-3:]): name for name in names}
    entries = []
    for domain in domains:
        for part in ("train", "test"):
            for line in lines_of(files, one_file(names, f"{domain}_{part}.txt", "DomainNet")):
                path = line.rpartition(" ")[0]
                entries.append(Entry(by_tail.get(path, path), PurePosixPath(path).parent.name, part == "test"))
    return present(entries, names)


def folder_entries(files: Files) -> list[Entry]:
    """train/<class>/ and val/ or test/<class>/, wherever they are in the archive."""
    entries = []
    for name in files.names():
        parts = PurePosixPath(name).parts
        if len(parts) >= 3 and parts[-3] in ("train", "val", "test") and is_image(name):
            entries.append(Entry(name, parts[-2], parts[-3] != "train"))
    return entries


# The split of ImageNet-R -------------------------------------------------------------------------------------

def write_split(folder: Path, entries: Sequence[Entry]) -> None:
    """Keep the split beside the data, once; a folder that cannot be written only loses the file."""
    file = folder / SPLIT_FILE
    if file.exists() or not is_first_process():
        return
    split = {"train": [e.path for e in entries if not e.test], "test": [e.path for e in entries if e.test]}
    try:
        write_atomic(file, json.dumps(split, indent=0))
        log.info("%s: wrote the split (%d training, %d test images)", file, len(split["train"]), len(split["test"]))
    except OSError as error:
        log.warning("%s cannot be written (%s); the split is the same without it", file, error)


def given_split(files: Files) -> list[Entry] | None:
    """The split of split.json, if there is one beside the images. Raises UserError."""
    names = files.names()
    given = next((name for name in names if PurePosixPath(name).name == SPLIT_FILE), None)
    if given is None:
        return None
    parts, base = split_parts(given, files.read(given)), above(given)
    return present([Entry(base + path, class_of(path), part == "test") for part, paths in parts.items() for path in paths], names)


# Help --------------------------------------------------------------------------------------------------------

def _no_id_lacks(wanted: Iterable[str], table: Mapping[str, str], file: str, what: str) -> None:
    lacking = list(dict.fromkeys(number for number in wanted if number not in table))
    if lacking:
        raise UserError(f"{file} has no line for {len(lacking)} {what} number(s), the first is {lacking[0]}; get the file anew from its "
                        "source")


def _car_class(number: int, classes: Sequence[str], file: str) -> str:
    """"001.AM General Hummer SUV 2000"; a slash in a name ("C/V") would be a folder."""
    if not 1 <= number <= len(classes):
        raise UserError(f"{file}: got the class {number}, allowed: 1 to {len(classes)}; is it of the same release as cars_meta.mat?")
    return f"{number:03d}.{classes[number - 1].replace('/', '-')}"
