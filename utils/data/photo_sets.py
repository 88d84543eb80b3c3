"""The official layouts of photo sets: names of classes, lists and splits as their archives have them.

Where torchvision has the set, the folder that it unpacks to is read as it lies and gives the same images and classes. Class
names begin with the official number where their sorted order is another one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import PurePosixPath

import numpy as np

from utils.data.entries import (
    SPLIT_SEED,
    Entry,
    EntryReader,
    Files,
    SomeFiles,
    above,
    class_folder_images,
    class_of,
    columns_of,
    json_of,
    lines_of,
    matlab_of,
    one_file,
    present,
    split_per_class,
)
from utils.data.official import folder_entries, given_split, resisc_entries
from utils.data.walk import is_image
from utils.errors import UserError

EUROSAT_CLASSES = {"AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop", "Residential",
                   "River", "SeaLake"}
VTAB_CLASSES = 10  # of each of the five sets
VTAB_IMAGES = 1000  # training images drawn from each set, as VTAB-1k does


def split_folders(what: str, otherwise: Callable[[list[str]], list[Entry]] | None = None) -> EntryReader:
    """A set that is handed around as train/<class>/ and test/<class>/; else split.json beside it, else `otherwise` of all images."""
    def entries(files: Files) -> list[Entry]:
        found = folder_entries(files)
        if any(not entry.test for entry in found):
            return found
        given = given_split(files)
        if given is not None:
            return given
        if otherwise is None:
            raise UserError(f"{what}: no train/<class>/ and test/<class>/ found; get the archive that docs/datasets.md names, or put a "
                            'split.json {"train": [paths], "test": [paths]} beside the images')
        return otherwise(class_folder_images(files.names(), what))
    return entries


def food101_entries(files: Files) -> list[Entry]:
    """Food-101: meta/train.json and test.json (or .txt), class -> "class/number"; images/<class>/<number>.jpg."""
    names, stems, entries = files.names(), _stems(files.names()), []
    for part in ("train", "test"):
        as_json = any(name.endswith(f"meta/{part}.json") for name in names)
        file = one_file(names, f"{part}.json" if as_json else f"{part}.txt", "Food-101", folder="meta")
        listed = [path for paths in _lists(files, file).values() for path in paths] if as_json else lines_of(files, file)
        entries += [Entry(_image(stems, f"{above(file, 2)}images/{path}"), path.rpartition("/")[0], part == "test") for path in listed]
    return present(entries, names)


def aircraft_entries(files: Files) -> list[Entry]:
    """FGVC-Aircraft by variant: images_variant_trainval.txt and _test.txt, "number variant"; variants.txt has the order."""
    names = files.names()
    base, stems, entries = above(one_file(names, "variants.txt", "FGVC-Aircraft")), _stems(names), []
    number = {variant: i for i, variant in enumerate(lines_of(files, base + "variants.txt"), start=1)}
    for part in ("trainval", "test"):
        file = f"{base}images_variant_{part}.txt"
        for image, variant in columns_of(files, file, 2):
            if variant not in number:
                raise UserError(f"{file}: got the variant {variant!r}, allowed: those of {base}variants.txt; get the files anew")
            entries.append(Entry(_image(stems, f"{base}images/{image}"), _numbered(number[variant], variant, 3), part == "test"))
    return present(entries, names)


def flowers_entries(files: Files) -> list[Entry]:
    """Flowers-102: imagelabels.mat and setid.mat; trnid and valid train (1,020 each), tstid tests (6,149)."""
    from torchvision.datasets import Flowers102

    names, stems = files.names(), _stems(files.names())
    label_file, set_file = (one_file(names, file, "Flowers-102") for file in ("imagelabels.mat", "setid.mat"))
    labels, entries = matlab_of(files, label_file, "labels"), []
    folder = above(one_file([name for name in names if is_image(name)] or names, "image_00001.jpg", "Flowers-102"))
    for key in ("trnid", "valid", "tstid"):
        for image in matlab_of(files, set_file, key).tolist():
            label = int(labels[image - 1]) if 1 <= image <= len(labels) else 0
            if not 1 <= label <= len(Flowers102.classes):
                raise UserError(f"{set_file}: got image {image} of class {label}, allowed: classes 1 to {len(Flowers102.classes)}; get the "
                                "files anew from their source")
            entries.append(Entry(_image(stems, f"{folder}image_{image:05d}"), _numbered(label, Flowers102.classes[label - 1], 3),
                                 key == "tstid"))
    return present(entries, names)


def pets_entries(files: Files) -> list[Entry]:
    """Oxford-IIIT Pets: annotations/trainval.txt and test.txt, "image class species breed"; images/<image>.jpg."""
    names, stems, entries = files.names(), _stems(files.names()), []
    for part in ("trainval", "test"):
        file = one_file(names, f"{part}.txt", "Oxford-IIIT Pets", folder="annotations")
        for image, number, *_ in columns_of(files, file, 4):
            if not number.isdecimal():
                raise UserError(f"{file}: got the class {number!r}, allowed: whole numbers; get the file anew from its source")
            label = _numbered(int(number), image.rpartition("_")[0], 2)
            entries.append(Entry(_image(stems, f"{above(file, 2)}images/{image}"), label, part == "test"))
    return present(entries, names)


def dtd_entries(files: Files) -> list[Entry]:
    """Describable Textures, its first partition: labels/train1.txt and val1.txt train (1,880 each), test1.txt tests (1,880)."""
    names, entries = files.names(), []
    for part in ("train", "val", "test"):
        file = one_file(names, f"{part}1.txt", "DTD", folder="labels")
        entries += [Entry(f"{above(file, 2)}images/{path}", class_of(path), part == "test") for path in lines_of(files, file)]
    return present(entries, names)


def eurosat_entries(files: Files) -> list[Entry]:
    """EuroSAT (RGB) has no official split: 80/20 of each class, by one permutation per class."""
    return split_per_class(class_folder_images(files.names(), "EuroSAT"))


def sun397_entries(files: Files) -> list[Entry]:
    """SUN397, its first partition: Training_01.txt and Testing_01.txt of Partitions.zip, "/a/abbey/sun_a.jpg"; ClassName.txt."""
    names, entries = files.names(), []
    class_file = one_file(names, "ClassName.txt", "SUN397")
    number = {path: i for i, path in enumerate(lines_of(files, class_file), start=1)}
    images = {f"/{name}": name for name in names if is_image(name)}
    by_tail = {path[path.index(f"/{kind}/"):]: name for path, name in images.items() for kind in [_letter_of(path)] if kind}
    for part, file in (("train", "Training_01.txt"), ("test", "Testing_01.txt")):
        for path in lines_of(files, one_file(names, file, "SUN397 (its split is in Partitions.zip)")):
            kind = path.rpartition("/")[0]
            if kind not in number:
                raise UserError(f"{file}: got the class {kind!r}, allowed: those of {class_file}; get the files anew")
            entries.append(Entry(by_tail.get(path, path), _numbered(number[kind], kind[3:], 3), part == "test"))
    return present(entries, names)


def tiny_imagenet_entries(files: Files) -> list[Entry]:
    """Tiny-ImageNet: train/<wnid>/images/*; val/images/* with val_annotations.txt "image wnid x y w h". test/ has no labels."""
    names, entries = files.names(), []
    annotations = one_file(names, "val_annotations.txt", "Tiny-ImageNet", folder="val")
    base = above(annotations, 2)
    for name in names:
        parts = PurePosixPath(name.removeprefix(base)).parts
        if name.startswith(base) and len(parts) == 4 and parts[0] == "train" and parts[2] == "images" and is_image(name):
            entries.append(Entry(name, parts[1], False))
    entries += [Entry(f"{base}val/images/{image}", wnid, True) for image, wnid, _ in columns_of(files, annotations, 3)]
    return present(entries, names)


def inaturalist_mini_entries(files: Files) -> list[Entry]:
    """iNaturalist 2021 mini: train_mini/<number_kingdom_..._species>/* trains, val/<the same>/* tests."""
    entries = []
    for name in files.names():
        parts = PurePosixPath(name).parts
        if len(parts) >= 3 and parts[-3] in ("train_mini", "val") and is_image(name):
            entries.append(Entry(name, parts[-2], parts[-3] == "val"))
    if not any(not entry.test for entry in entries):
        raise UserError("iNaturalist-mini: no train_mini/<class>/<image> found; expected train_mini.tar.gz and val.tar.gz, unpacked or not")
    return entries


def vtab_entries(files: Files) -> list[Entry]:
    """VTAB-5, ten classes of each of five sets in fixed order: LAMDA-PILOT's train/ and test/, else from the official layouts.

    From the official layouts: the first ten classes of each set; of its training images a thousand drawn as VTAB-1k does, of
    which those of the ten classes; all test images of the ten classes. These draws are ours (seed 0).
    """
    found = folder_entries(files)
    if any(not entry.test for entry in found):
        return found
    entries = []
    for place, (name, read) in enumerate(_vtab_readers(files).items()):
        own = read(files)
        labels = {label: i for i, label in enumerate(sorted({entry.label for entry in own})[:VTAB_CLASSES])}
        train = [entry for entry in own if not entry.test]
        drawn = np.random.default_rng([SPLIT_SEED, place]).permutation(len(train))[:VTAB_IMAGES]
        chosen = [train[i] for i in sorted(drawn.tolist())] + [entry for entry in own if entry.test]
        entries += [entry._replace(label=f"{VTAB_CLASSES * place + labels[entry.label]:02d}.{name}.{entry.label}")
                    for entry in chosen if entry.label in labels]
    return entries


def _vtab_readers(files: Files) -> Mapping[str, EntryReader]:
    """The five sets in their order; two of them are nothing but folders of classes, which are known by their names."""
    textures = above(one_file(files.names(), "train1.txt", "VTAB-5, DTD", folder="labels"), 2) + "images/"

    def satellite(name: str) -> bool:
        return class_of(name) in EUROSAT_CLASSES

    def scene(name: str) -> bool:
        return PurePosixPath(name).name.startswith(f"{class_of(name)}_") and not satellite(name) and not name.startswith(textures)

    def only(read: EntryReader, wanted: Callable[[str], bool]) -> EntryReader:
        return lambda source: read(SomeFiles(source, [name for name in source.names() if wanted(name)]))

    return {"resisc45": only(resisc_entries, scene), "dtd": dtd_entries, "pets": pets_entries,
            "eurosat": only(eurosat_entries, satellite), "flowers102": flowers_entries}


# Help --------------------------------------------------------------------------------------------------------

def _stems(names: list[str]) -> dict[str, str]:
    """Image path without its ending -> the path: lists name images without it, and copies differ in its case."""
    return {name.rpartition(".")[0]: name for name in names if is_image(name)}


def _image(stems: Mapping[str, str], path: str) -> str:
    return stems.get(path, f"{path}.jpg")


def _numbered(number: int, name: str, digits: int) -> str:
    """"007.canterbury bells"; what cannot be in a folder's name is replaced."""
    return f"{number:0{digits}d}.{name.replace('/', '-').replace('?', '')}"


def _letter_of(path: str) -> str:
    """The one-letter folder of SUN397 that an image's class lies in; "" if there is none."""
    return next((part for part in PurePosixPath(path).parts if len(part) == 1 and part.isalpha()), "")


def _lists(files: Files, file: str) -> dict[str, list[str]]:
    content = json_of(files, file)
    if not isinstance(content, dict) or not all(isinstance(paths, list) and all(isinstance(path, str) for path in paths)
                                                for paths in content.values()):
        raise UserError(f"{file}: allowed: {{class: [paths]}}; get the file anew from its source")
    return content
