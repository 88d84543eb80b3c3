"""Data sets that are arrays in memory: torchvision's, scikit-learn's digits, and images made on the spot."""

from __future__ import annotations

import contextlib
import io
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from utils.data.folders import split_set
from utils.data.types import ImageSet, Splits
from utils.errors import UserError, first_line
from utils.rng import numpy_generator

log = logging.getLogger("slca.data")

DOWNLOADS = {"CIFAR10": "0.17 GB from https://www.cs.toronto.edu/~kriz/", "CIFAR100": "0.17 GB from https://www.cs.toronto.edu/~kriz/",
             "FashionMNIST": "0.03 GB from http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"}
DIGIT_SIZE = 28  # pixels the 8x8 digits are enlarged to
SYNTHETIC_CELLS = 4  # a class's pattern is a grid of so many coloured cells a side
SYNTHETIC_BYTES = 32 * 2**30  # of all images made; they are kept in memory
SYNTHETIC_NOISE = 25.0  # standard deviation in grey levels


def load_torchvision(name: str, root: Path) -> Splits:
    """CIFAR-10, CIFAR-100 or Fashion-MNIST ("CIFAR10", "CIFAR100", "FashionMNIST"); downloaded if there is a network.

    CIFAR's files are pickles: torchvision compares the md5 of each with its own list before it opens it, and refuses
    others. (Do not read them by hand.)

    Raises:
        UserError: the files are not there and cannot be downloaded, or they are not the original ones.
    """
    from torchvision import datasets

    kind: Any = getattr(datasets, name)
    try:
        train, test = _quietly(kind, root, download=False)
    except pickle.UnpicklingError:  # torchvision reads the files of its old versions with weights_only
        raise UserError(f"{name}: files under {root}/ hold more than arrays, and loading them could run code; remove "
                        f"{root / name / 'processed'}/, then {_where_to_put(name, root)}") from None
    except RuntimeError:
        log.info("%s: downloading %s to %s/", name, DOWNLOADS[name], root)
        try:
            train, test = _quietly(kind, root, download=True)
        except (OSError, RuntimeError) as error:
            raise UserError(f"{name} is not complete under {root}/ and cannot be downloaded ({first_line(error)}); "
                            f"{_where_to_put(name, root)}") from None
    sets = [ImageSet(np.asarray(part.data).reshape(len(part.data), *part.data.shape[1:3], -1),
                     np.asarray(part.targets, dtype=np.int64)) for part in (train, test)]
    return sets[0], sets[1], list(train.classes)


def _quietly(kind: Any, root: Path, download: bool) -> tuple[Any, Any]:
    """Both splits; the download's own bar stays, its print-outs do not."""
    with contextlib.redirect_stdout(io.StringIO()):
        return kind(str(root), train=True, download=download), kind(str(root), train=False, download=download)


def _where_to_put(name: str, root: Path) -> str:
    if name == "FashionMNIST":
        return (f"place train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte "
                f"(unpacked) in {root / 'FashionMNIST' / 'raw'}/")
    archive = {"CIFAR10": "cifar-10-python.tar.gz", "CIFAR100": "cifar-100-python.tar.gz"}[name]
    return f"place {archive} from https://www.cs.toronto.edu/~kriz/cifar.html in {root}/ (it is unpacked from there)"


def load_digits() -> Splits:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels, enlarged to 28x28 grey; a fixed 80/20 split per class."""
    from PIL import Image
    from sklearn import datasets

    digits = datasets.load_digits()
    grey = (digits.images * (255 / 16)).round().astype(np.uint8)  # (N, 8, 8), values 0..16
    large = np.stack([np.asarray(Image.fromarray(g).resize((DIGIT_SIZE, DIGIT_SIZE), Image.Resampling.BICUBIC)) for g in grey])
    names = [str(i) for i in range(10)]
    train, test = split_set(ImageSet(large[..., None], digits.target.astype(np.int64)), 0.2, 0, names)
    return train, test, names


def check_synthetic(num_classes: int, per_class: int, size: int, channels: int, num_domains: int) -> None:
    """Raises UserError if so many images would not fit into a usual machine's memory."""
    needed = num_classes * per_class * num_domains * size * size * channels
    if needed > SYNTHETIC_BYTES:
        raise UserError(f"synthetic images: {num_classes * per_class * num_domains:,} of {size} px take {needed / 2**30:,.0f} GiB, "
                        f"allowed: {SYNTHETIC_BYTES // 2**30} GiB; ask for fewer or smaller ones")


def make_synthetic(num_classes: int, train_per_class: int, test_per_class: int, size: int, channels: int,
                   num_domains: int = 1) -> Splits:
    """Images that are easy to learn: each class a pattern of coloured cells, plus noise; each domain its own light.

    A class's images depend on its number, the size and the channels alone, not on how many others there are.
    """
    sets = []
    for split, count in (("train", train_per_class), ("test", test_per_class)):
        images, labels, domains = [], [], []
        for domain in range(num_domains):
            for label in range(num_classes):
                images.append(_synthetic_images(label, domain, split, count, size, channels))
                labels += [label] * count
                domains += [domain] * count
        sets.append(ImageSet(np.concatenate(images), np.array(labels, dtype=np.int64),
                             np.array(domains, dtype=np.int64) if num_domains > 1 else None))
    return sets[0], sets[1], [f"pattern {i}" for i in range(num_classes)]


def _synthetic_images(label: int, domain: int, split: str, count: int, size: int, channels: int) -> np.ndarray:
    """(count, size, size, channels) uint8."""
    cells = numpy_generator("synthetic", "pattern", label, channels).uniform(0, 255, (SYNTHETIC_CELLS, SYNTHETIC_CELLS, channels))
    at = np.arange(size) * SYNTHETIC_CELLS // size
    pattern = cells[at][:, at]
    light = numpy_generator("synthetic", "light", domain, channels)
    if domain:  # the first domain is the plain one
        pattern = light.uniform(0.4, 0.8) * pattern + light.uniform(0, 80, channels)
    noise = numpy_generator("synthetic", split, label, domain, size, channels).normal(0, SYNTHETIC_NOISE, (count, size, size, channels))
    return (pattern + noise).clip(0, 255).astype(np.uint8)
