"""5-datasets: CIFAR-10, MNIST, Fashion-MNIST, SVHN and notMNIST, ten classes each, in this order, as colour images of 32 px."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from utils.data.cards import Archive
from utils.data.types import ImageSet, Splits
from utils.data.walk import files_below, is_image
from utils.errors import UserError, first_line

SIZE = 32  # pixels a side of all images; grey ones of 28 are enlarged
KINDS = ("CIFAR10", "MNIST", "FashionMNIST", "SVHN")  # torchvision's, in their order; notMNIST is the fifth
LETTERS = "ABCDEFGHIJ"
CIFAR_FILES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
GREY_FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
SVHN_FILES = ("train_32x32.mat", "test_32x32.mat")
MNIST_URL, FASHION_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/", "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
SVHN_URL = "http://ufldl.stanford.edu/housenumbers/"
FIVE_ARCHIVES = (
    Archive("cifar-10-python.tar.gz", 0.17, "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),
    *(Archive(f"mnist/{file}-ubyte.gz", size, f"{MNIST_URL}{file}-ubyte.gz", md5) for file, size, md5 in (
        ("train-images-idx3", 0.01, "f68b3c2dcbeaaa9fbdd348bbdeb94873"), ("train-labels-idx1", 0.001, "d53e105ee54ea40749a09fcbcd1e9432"),
        ("t10k-images-idx3", 0.002, "9fb629c4189551a2d022fa330f9573f3"), ("t10k-labels-idx1", 0.001, "ec29112dd5afa0611ce80d1b7f02629c"))),
    *(Archive(f"fashion/{file}-ubyte.gz", size, f"{FASHION_URL}{file}-ubyte.gz", md5) for file, size, md5 in (
        ("train-images-idx3", 0.026, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"), ("train-labels-idx1", 0.001, "25c81989df183df01b3e8a0aad5dffbe"),
        ("t10k-images-idx3", 0.004, "bef4ecab320f06d8554ea6380940ec79"), ("t10k-labels-idx1", 0.001, "bb300cfdad3c16e7a12a480ee83cd310"))),
    Archive("train_32x32.mat", 0.18, f"{SVHN_URL}train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
    Archive("test_32x32.mat", 0.06, f"{SVHN_URL}test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
    Archive("notMNIST.zip", 0.02, "https://github.com/facebookresearch/Adversarial-Continual-Learning/raw/main/data/notMNIST.zip"),
)


def five_targets(names: Sequence[str]) -> dict[str, str]:
    """Name in the source -> path under the set's folder. MNIST and Fashion-MNIST name their files alike: Fashion-MNIST's lie in a folder
    or archive with "fashion" in its name. Raises UserError for a file that is missing.
    """
    wanted = [(f"cifar-10-batches-py/{file}", file, None) for file in CIFAR_FILES]
    wanted += [(f"MNIST/raw/{file}", file, False) for file in GREY_FILES]
    wanted += [(f"FashionMNIST/raw/{file}", file, True) for file in GREY_FILES] + [(file, file, None) for file in SVHN_FILES]
    targets = {}
    for target, file, fashion in wanted:
        found = [name for name in names if PurePosixPath(name).name == file and fashion in (None, "fashion" in name.lower())]
        if not found:
            hint = {True: ' in a folder with "fashion" in its name', False: ' in a folder without "fashion" in its name'}.get(fashion, "")
            raise UserError(f"5-datasets: {file} is missing{hint}; docs/datasets.md names the archives")
        targets[found[0]] = target
    letters = {name: "/".join(PurePosixPath(name).parts[-3:]) for name in names if _is_letter(name)}
    if not letters:
        raise UserError("5-datasets: notMNIST/{Train,Test}/<A to J>/*.png is missing; docs/datasets.md names the archives")
    return targets | {name: f"notMNIST/{tail}" for name, tail in letters.items()}


def load_five_datasets(folder: Path) -> Splits:
    """All five as one set of 50 classes, `<place of the set><class>` in order. Raises UserError if one is not there; downloads nothing."""
    from torchvision import datasets

    parts: dict[bool, list[tuple[np.ndarray, np.ndarray]]] = {True: [], False: []}
    for kind in KINDS:
        for train in (True, False):
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    which = {"split": "train" if train else "test"} if kind == "SVHN" else {"train": train}
                    loaded = getattr(datasets, kind)(str(folder), download=False, **which)
            except Exception as error:  # many kinds: of md5 sums, of headers, of lengths
                raise UserError(f"5-datasets: {kind} under {folder}/ is not as torchvision wants it ({first_line(error)}); prepare the "
                                "set again") from None
            images = np.asarray(loaded.data)
            images = images.transpose(0, 2, 3, 1) if kind == "SVHN" else images
            labels = np.asarray(loaded.labels if kind == "SVHN" else loaded.targets, dtype=np.int64)
            parts[train].append((np.ascontiguousarray(images), labels))
    notes = []
    for train in (True, False):
        letters, labels, broken = _letters(folder / "notMNIST" / ("Train" if train else "Test"))
        parts[train].append((letters, labels))
        if broken:
            notes.append(f"{len(broken)} images of notMNIST are damaged and left out, the first is {broken[0]}")
    train_set, test_set = _joined(parts[True]), _joined(parts[False])
    names = [f"{place}{label} {kind}" for place, kind in enumerate((*KINDS, "notMNIST")) for label in range(10)]
    return train_set.noted(*notes), test_set, names


def _is_letter(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return len(parts) >= 3 and parts[-3] in ("Train", "Test") and parts[-2] in LETTERS and is_image(name)


def _letters(folder: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Images (N, 28, 28) and labels (N,) of notMNIST, and the damaged files that its archive is known to hold. Raises UserError."""
    images, labels, broken = [], [], []
    for name in files_below(folder) if folder.is_dir() else []:
        parts = PurePosixPath(name).parts
        if len(parts) != 2 or parts[0] not in LETTERS or not is_image(name):
            continue
        try:
            with Image.open(folder / name) as image:
                images.append(np.asarray(image.convert("L")))
        except Exception:  # PIL raises many kinds
            broken.append(str(folder / name))
            continue
        labels.append(LETTERS.index(parts[0]))
    if not images:
        raise UserError(f"5-datasets: {folder}/<A to J>/ holds no image; prepare the set again")
    return np.stack(images), np.array(labels, dtype=np.int64), broken


def _joined(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> ImageSet:
    """The sets one after another, labels 0..9 of the first, 10..19 of the second and so on."""
    images = np.concatenate([_colour(images) for images, _ in parts])
    return ImageSet(images, np.concatenate([labels + 10 * place for place, (_, labels) in enumerate(parts)]))


def _colour(images: np.ndarray) -> np.ndarray:
    """(N, 32, 32, 3) uint8 of grey (N, H, W) or colour images."""
    if images.ndim == 4:
        return images
    out = np.empty((len(images), SIZE, SIZE, 3), dtype=np.uint8)
    for i, image in enumerate(images):
        out[i] = np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC))[..., None]
    return out
