"""Readers of class folders and npz arrays, and the checks that every layout goes through.

A reader looks at names, never into images, and gives two `ImageSet`s and the class names. Mistakes in the data are told
in one sentence with the path.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.data.types import ImageSet, Splits
from utils.errors import UserError

log = logging.getLogger("slca.data")

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")


# Folders -----------------------------------------------------------------------------------------------------

def class_folders(folder: Path) -> list[Path]:
    """The class folders of `folder` in sorted order of their names."""
    return sorted((p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")), key=lambda p: p.name)


def image_files(folder: Path) -> list[Path]:
    """All image files under `folder`, sorted; hidden files (.DS_Store, ._x.jpg) are none."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS and not p.name.startswith(".") and p.is_file())


def read_class_folders(folder: Path, names: Sequence[str] | None = None) -> tuple[ImageSet, list[str]]:
    """One sub-folder per class. With `names` (the training set's classes) any other class is an error.

    Raises:
        UserError: no folder, no class folders, a class folder without images, or a class that is not in `names`.
    """
    if not folder.is_dir():
        raise UserError(f"folder {folder} does not exist; it should hold one sub-folder of images per class")
    classes = class_folders(folder)
    if not classes:
        raise UserError(f"folder {folder} has no sub-folders; it should hold one sub-folder of images per class")
    names = list(names) if names is not None else [p.name for p in classes]
    number = {name: i for i, name in enumerate(names)}
    paths: list[Path] = []
    labels: list[int] = []
    for class_folder in classes:
        if class_folder.name not in number:
            raise UserError(f"class folder {class_folder} has no counterpart among the training classes; remove it, or add "
                            "training images for it")
        files = image_files(class_folder)
        if not files:
            raise UserError(f"class folder {class_folder} has no images (allowed: {', '.join(sorted(EXTENSIONS))}); add some or "
                            "remove the folder")
        paths += files
        labels += [number[class_folder.name]] * len(files)
    return ImageSet(paths, np.array(labels, dtype=np.int64)), names


def find_test_folder(root: Path) -> Path | None:
    """`root`/val or `root`/test, whichever is there."""
    return next((root / name for name in ("val", "test") if (root / name).is_dir()), None)


def read_folders(train: Path, test: Path) -> Splits:
    """Class folders under `train` and under `test`. Raises UserError."""
    if train.is_dir() and test.is_dir() and train.samefile(test):
        raise UserError(f"train and test are the same folder, {train}; name two, or split one with "
                        '"split": {"test_fraction": 0.2}')
    train_set, names = read_class_folders(train)
    test_set, _ = read_class_folders(test, names)
    return train_set, test_set, names


def split_set(images: ImageSet, test_fraction: float, seed: int, names: Sequence[str]) -> tuple[ImageSet, ImageSet]:
    """Cut `test_fraction` of each class's images (each domain's by itself) off as the test set, by one permutation per class.

    A class of two or more images keeps at least one on each side; a class of one image has no test image.
    """
    train_parts, test_parts = [], []
    groups = images.labels if images.domains is None else images.labels + len(names) * images.domains
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        members = members[np.random.default_rng([seed, int(group)]).permutation(len(members))]
        held_out = min(max(1, round(test_fraction * len(members))), len(members) - 1)
        test_parts.append(members[:held_out])
        train_parts.append(members[held_out:])
    return images.subset(np.sort(np.concatenate(train_parts))), images.subset(np.sort(np.concatenate(test_parts)))


# Arrays ------------------------------------------------------------------------------------------------------

def read_npz(path: Path, domains: Sequence[str] | None = None) -> Splits:
    """An npz file with x_train, y_train, x_test, y_test; x (N, H, W, C) or (N, H, W) uint8, y (N,) whole numbers.

    Class names come from `class_names` or `classes` (K,) text if the file has it, else they are the numbers. Optional:
    `domains_train`, `domains_test` (N,) whole numbers and `domain_names` (D,) text; with `domains` only the images of these
    are read, numbered in that order.

    Raises:
        UserError: no such file, or a key, type or shape that does not fit.
    """
    arrays = open_npz(path)
    sets, shapes = [], []
    for split in ("train", "test"):
        images, labels = _checked_images(path, arrays, split), _checked_labels(path, arrays, split)
        if len(images) != len(labels):
            raise UserError(f"{path}: x_{split} has {len(images)} images, y_{split} has {len(labels)} labels; they must agree")
        sets.append(_in_domains(path, arrays, split, ImageSet(images, labels), domains))
        shapes.append(images.shape[1:])
    if shapes[0] != shapes[1]:
        raise UserError(f"{path}: x_train has images of {shapes[0]}, x_test of {shapes[1]}; (height, width, channels) must agree")
    count = int(max(s.labels.max() for s in sets if len(s))) + 1
    key = next((key for key in ("class_names", "classes") if key in arrays), None)
    names = [str(name) for name in arrays[key]] if key else [str(i) for i in range(count)]
    if len(names) < count:
        raise UserError(f"{path}: {key} has {len(names)} names, but the labels go up to {count - 1}")
    return sets[0], sets[1], names


def npz_domains(path: Path) -> tuple[str, ...]:
    """Names of an npz file's domains, in the order of their numbers; () without domains. Raises UserError."""
    return _npz_domains(path, open_npz(path))


def _npz_domains(path: Path, arrays: np.lib.npyio.NpzFile) -> tuple[str, ...]:
    there = [key for key in ("domains_train", "domains_test") if key in arrays]
    if len(there) == 1:
        raise UserError(f"{path}: got {there[0]} alone, allowed: both domains_train and domains_test, or neither")
    if not there:
        return ()
    count = 1 + max(int(_checked_numbers(path, arrays, key).max()) for key in there)
    names = tuple(str(name) for name in _read_array(path, arrays, "domain_names")) if "domain_names" in arrays else tuple(
        f"domain {i}" for i in range(count))
    if len(names) < count or len(set(names)) < len(names):
        raise UserError(f"{path}: domain_names has {len(names)} names ({len(set(names))} distinct), but the domains' numbers go up to "
                        f"{count - 1}; each domain needs a name of its own")
    return names


def _in_domains(path: Path, arrays: np.lib.npyio.NpzFile, split: str, images: ImageSet, chosen: Sequence[str] | None) -> ImageSet:
    """`images` with the domain of each, where the file has domains; with `chosen` only those of these domains."""
    names = _npz_domains(path, arrays)
    wrong = [name for name in chosen or () if name not in names]
    if wrong:
        raise UserError(f"dataset.domains: {wrong[0]!r} is not in {path}, allowed: {', '.join(names) or 'none, it has no domains'}")
    if chosen and len(set(chosen)) < len(chosen):
        raise UserError("dataset.domains: each domain may be listed once")
    if not names:
        return images
    domains = _checked_numbers(path, arrays, f"domains_{split}")
    if len(domains) != len(images):
        raise UserError(f"{path}: x_{split} has {len(images)} images, domains_{split} has {len(domains)} numbers; they must agree")
    number = np.full(len(names), -1)
    number[[names.index(name) for name in chosen or names]] = np.arange(len(chosen or names))
    return ImageSet(images.images, images.labels, number[domains]).subset(np.flatnonzero(number[domains] >= 0))


def npz_shape(path: Path) -> tuple[int, int, int, int]:
    """Number of classes, height, width, channels, from the labels and the header of x_train alone. Raises UserError."""
    arrays = open_npz(path)
    count = int(max(_checked_labels(path, arrays, split).max() for split in ("train", "test"))) + 1
    with zipfile.ZipFile(path) as archive, archive.open("x_train.npy") as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape = read_header(file)[0]
    _check_shape(path, "train", shape)
    return (len(arrays["classes"]) if "classes" in arrays else count, shape[1], shape[2], shape[3] if len(shape) == 4 else 1)


def open_npz(path: Path) -> np.lib.npyio.NpzFile:
    """Open an npz file without ever unpickling, and check its keys. Raises UserError."""
    try:
        arrays = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"npz file {path} does not exist; give its path as \"root\" of the dataset object") from None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not an npz file that can be read ({error}); write it with numpy.savez_compressed") from None
    found = sorted(getattr(arrays, "files", []))
    missing = [key for key in NPZ_KEYS if key not in found]
    if missing:
        raise UserError(f"{path}: key {missing[0]!r} is missing, got {', '.join(found) or 'a single array'}, allowed: "
                        f"{', '.join(NPZ_KEYS)}")
    return arrays


def _read_array(path: Path, arrays: np.lib.npyio.NpzFile, key: str) -> np.ndarray:
    try:
        return arrays[key]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: {key} cannot be read ({error}); objects are not allowed, and the file must be whole") from None


def _checked_images(path: Path, arrays: np.lib.npyio.NpzFile, split: str) -> np.ndarray:
    images = _read_array(path, arrays, f"x_{split}")
    if images.dtype != np.uint8:
        raise UserError(f"{path}: x_{split} is {images.dtype}, allowed: uint8, 0 to 255 (from pixels in [0, 1]: "
                        "(255 * x).round().astype('uint8'))")
    _check_shape(path, split, images.shape)
    return images if images.ndim == 4 else images[..., None]


def _check_shape(path: Path, split: str, shape: tuple[int, ...]) -> None:
    if len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3)):
        return
    hint = "; move the channels last: x.transpose(0, 2, 3, 1)" if len(shape) == 4 and shape[1] in (1, 3) else ""
    raise UserError(f"{path}: x_{split} has shape {shape}, allowed: (N, H, W), (N, H, W, 1) or (N, H, W, 3){hint}")


def _checked_labels(path: Path, arrays: np.lib.npyio.NpzFile, split: str) -> np.ndarray:
    return _checked_numbers(path, arrays, f"y_{split}", "label")


def _checked_numbers(path: Path, arrays: np.lib.npyio.NpzFile, key: str, word: str = "number") -> np.ndarray:
    """(N,) int64 from 0 up, N at least 1."""
    numbers = _read_array(path, arrays, key)
    numbers = numbers[:, 0] if numbers.ndim == 2 and numbers.shape[1] == 1 else numbers
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise UserError(f"{path}: {key} is {numbers.dtype} of shape {numbers.shape}, allowed: (N,) whole numbers from 0")
    if len(numbers) == 0 or numbers.min() < 0:
        got = f"no {word}s" if len(numbers) == 0 else f"the {word} {numbers.min()}"
        raise UserError(f"{path}: {key} has {got}, allowed: at least one, all from 0 up")
    return numbers.astype(np.int64)


# Checks common to all layouts --------------------------------------------------------------------------------

def check_classes(train: ImageSet, test: ImageSet, names: Sequence[str], where: str) -> None:
    """Every class needs training images; one without test images is only worth a warning. Raises UserError."""
    without_train = np.setdiff1d(np.arange(len(names)), train.labels)
    if len(without_train):
        raise UserError(f"{where}: {_named(without_train, names)} no training image; every class 0 to {len(names) - 1} needs one "
                        "(or list the classes to use under \"classes\")")
    without_test = np.setdiff1d(np.arange(len(names)), test.labels)
    if len(without_test):
        log.warning("%s: %s no test image and will not count in any accuracy", where, _named(without_test, names))
    if train.domains is not None:
        slots = len(names) * (int(train.domains.max()) + 1)
        empty = slots - len(np.unique(train.domains * len(names) + train.labels))
        if empty:
            log.warning("%s: %d of %d pairs of a domain and a class have no training image and will not be learned", where, empty, slots)


def _named(classes: np.ndarray, names: Sequence[str]) -> str:
    some = ", ".join(repr(names[c]) for c in classes[:5])
    return f"class {some} has" if len(classes) == 1 else f"{len(classes)} classes ({some}{', ...' if len(classes) > 5 else ''}) have"
