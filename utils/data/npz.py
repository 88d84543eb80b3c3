"""Data sets in one npz file: x_train, y_train, x_test, y_test and class names. Nothing in it is trusted before it is checked.

An array is only read when its header agrees with the bytes that follow it, so that a header cannot ask for more memory
than the file holds; objects (pickles) are never read.
"""

from __future__ import annotations

import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.data.folders import label_limit
from utils.data.types import ImageSet, Splits
from utils.data.walk import is_regular
from utils.errors import UserError

KEYS = ("x_train", "y_train", "x_test", "y_test")
NAME_KEYS = ("class_names", "classes")  # either holds the names
DOMAIN_KEYS = ("domains_train", "domains_test", "domain_names")  # for the domain-incremental scenario
DAMAGED = (OSError, ValueError, TypeError, EOFError, SyntaxError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)


class Header(NamedTuple):
    """What an array's first bytes say about it."""

    shape: tuple[int, ...]
    dtype: np.dtype


class NpzFacts(NamedTuple):
    """What is known without reading an image."""

    names: list[str]
    height: int
    width: int
    channels: int
    domains: tuple[str, ...] = ()


def read_npz(path: Path, domains: Sequence[str] | None = None) -> Splits:
    """x (N, H, W, C) or (N, H, W) uint8, y (N,) whole numbers from 0.

    Class names come from `class_names` or `classes` (K,) text if the file has it, else they are the numbers. Where the file has
    `domains_train`, `domains_test` (N,) whole numbers and `domain_names` (D,) text, every image has a domain; with `domains` only
    images of these are taken, numbered in that order.

    Raises:
        UserError: no such file, or a key, type or shape that does not fit.
    """
    headers = _headers(path)
    labels = {split: _labels(path, headers, split) for split in ("train", "test")}
    names = _names(path, headers, labels)
    for split in ("train", "test"):  # all that the headers tell, before gigabytes are read
        _check_images(path, headers, split)
    shapes = [(*headers[key].shape[1:], 1)[:3] for key in ("x_train", "x_test")]
    if shapes[0] != shapes[1]:
        raise UserError(f"{path}: x_train has images of {shapes[0]}, x_test of {shapes[1]}; (height, width, channels) must agree")
    sets = [_in_domains(path, headers, split, ImageSet(_images(path, split), labels[split]), domains)
            for split in ("train", "test")]
    return sets[0], sets[1], names


def npz_facts(path: Path) -> NpzFacts:
    """Class names, height, width and channels, from the labels and the header of x_train alone. Raises UserError."""
    headers = _headers(path)
    names = _names(path, headers, {split: _labels(path, headers, split) for split in ("train", "test")})
    shape = headers["x_train"].shape
    _check_images(path, headers, "train")
    return NpzFacts(names, shape[1], shape[2], shape[3] if len(shape) == 4 else 1, _domain_names(path, headers))


# The file ----------------------------------------------------------------------------------------------------

def _headers(path: Path) -> dict[str, Header]:
    """Every array's header, each held against the bytes that are there. Raises UserError."""
    if not path.exists():
        raise UserError(f"npz file {path} does not exist; give its path as \"root\" of the dataset object")
    if not is_regular(path):
        raise UserError(f"{path} is not an npz file that can be read (it is a {'folder' if path.is_dir() else 'pipe or device'}); write "
                        "it with numpy.savez_compressed")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.removesuffix(".npy"): archive.getinfo(name) for name in archive.namelist() if name.endswith(".npy")}
            missing = [key for key in KEYS if key not in members]
            if missing:
                raise UserError(f"{path}: key {', '.join(map(repr, missing))} is missing, got {', '.join(sorted(members)) or 'no array'}, "
                                f"allowed: {', '.join(KEYS)}")
            return {key: _header(path, archive, members[key]) for key in (*KEYS, *NAME_KEYS, *DOMAIN_KEYS) if key in members}
    except DAMAGED as error:
        raise UserError(f"{path} is not an npz file that can be read ({error}); write it with numpy.savez_compressed") from None


def _header(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Header:
    key = member.filename.removesuffix(".npy")
    with archive.open(member) as file:
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
        except Exception:  # numpy, and Python's tokenizer below it, raise many kinds for a damaged header
            raise UserError(f"{path}: {key} cannot be read: it does not begin like an array; write the file with numpy.savez_compressed"
                            ) from None
        there = member.file_size - file.tell()
    if dtype.hasobject:
        raise UserError(f"{path}: {key} cannot be read: it holds Python objects, which are not allowed; give it one type "
                        "(names: numpy.array(names, dtype=str))")
    said = dtype.itemsize
    for length in shape:  # Python's numbers do not overflow
        said *= length
    if any(length < 0 for length in shape) or said != there:
        raise UserError(f"{path}: {key} cannot be read: its header speaks of the shape {shape} of {dtype}, {said} bytes, but {there} bytes "
                        "are there; write the file anew")
    return Header(shape, dtype)


def _array(path: Path, key: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[key]
    except MemoryError:
        raise UserError(f"{path}: {key} does not fit into memory; save the images as files, or fewer or smaller ones") from None
    except DAMAGED as error:
        raise UserError(f"{path}: {key} cannot be read ({error}); the file must be whole") from None


# What is in it -----------------------------------------------------------------------------------------------

def _images(path: Path, split: str) -> np.ndarray:
    images = _array(path, f"x_{split}")
    return images if images.ndim == 4 else images[..., None]


def _check_images(path: Path, headers: dict[str, Header], split: str) -> None:
    shape, dtype = headers[f"x_{split}"]
    if dtype != np.uint8:
        raise UserError(f"{path}: x_{split} is {dtype}, allowed: uint8, 0 to 255 (from pixels in [0, 1]: "
                        "(255 * x).round().astype('uint8'))")
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)) or 0 in shape[1:]:
        hint = "; move the channels last: x.transpose(0, 2, 3, 1)" if len(shape) == 4 and shape[1] in (1, 3) else ""
        raise UserError(f"{path}: x_{split} has shape {shape}, allowed: (N, H, W), (N, H, W, 1) or (N, H, W, 3){hint}")
    labels = headers[f"y_{split}"].shape[0]
    if shape[0] != labels:
        raise UserError(f"{path}: x_{split} has {shape[0]} images, y_{split} has {labels} labels; they must agree")


def _labels(path: Path, headers: dict[str, Header], split: str) -> np.ndarray:
    """(N,) int64. Raises UserError."""
    shape, dtype = headers[f"y_{split}"]
    if dtype.kind not in "iu" or len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] != 1):
        raise UserError(f"{path}: y_{split} is {dtype} of shape {shape}, allowed: (N,) whole numbers from 0")
    labels = _array(path, f"y_{split}").reshape(-1)
    if len(labels) == 0 or labels.min() < 0:
        got = "no labels" if len(labels) == 0 else f"the label {labels.min()}"
        raise UserError(f"{path}: y_{split} has {got}, allowed: at least one, all from 0 up")
    images = sum(headers[key].shape[0] for key in ("y_train", "y_test") if headers[key].shape)
    if labels.max() >= label_limit(images):
        raise UserError(f"{path}: y_{split} has the label {labels.max()}, allowed: class numbers from 0 to {label_limit(images) - 1} for "
                        f"{images} images; number the classes from 0 without gaps (numpy.unique(y, return_inverse=True)[1])")
    return labels.astype(np.int64)


def _domain_names(path: Path, headers: dict[str, Header]) -> tuple[str, ...]:
    """Names of the domains, in the order of their numbers; () without domains. Raises UserError."""
    there = [key for key in DOMAIN_KEYS[:2] if key in headers]
    if len(there) == 1:
        raise UserError(f"{path}: got {there[0]} alone, allowed: both domains_train and domains_test, or neither")
    if not there:
        return ()
    count = 1 + max(int(_domain_numbers(path, headers, key).max(initial=0)) for key in there)
    if "domain_names" not in headers:
        return tuple(f"domain {i}" for i in range(count))
    shape, dtype = headers["domain_names"]
    if len(shape) != 1 or dtype.kind != "U":
        raise UserError(f"{path}: domain_names is {dtype} of shape {shape}, allowed: (D,) text, one name per domain")
    names = tuple(_array(path, "domain_names").tolist())
    if len(names) < count or len(set(names)) < len(names):
        raise UserError(f"{path}: domain_names has {len(names)} names ({len(set(names))} distinct), but the domains' numbers go up to "
                        f"{count - 1}; each domain needs a name of its own")
    return names


def _domain_numbers(path: Path, headers: dict[str, Header], key: str) -> np.ndarray:
    """(N,) int64 from 0 up, one per image. Raises UserError."""
    shape, dtype = headers[key]
    images = headers[key.replace("domains", "x")].shape[0]
    if dtype.kind not in "iu" or shape != (images,):
        raise UserError(f"{path}: {key} is {dtype} of shape {shape}, allowed: ({images},) whole numbers from 0, one per image")
    numbers = _array(path, key).astype(np.int64)
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < label_limit(images):
        raise UserError(f"{path}: {key} has the number {numbers.min() if numbers.min() < 0 else numbers.max()}, allowed: 0 to "
                        f"{label_limit(images) - 1}; number the domains from 0 without gaps")
    return numbers


def _in_domains(path: Path, headers: dict[str, Header], split: str, images: ImageSet, chosen: Sequence[str] | None) -> ImageSet:
    """`images` with the domain of each, where the file has domains; with `chosen` only those of these domains. Raises UserError."""
    names = _domain_names(path, headers)
    wrong = [name for name in chosen or () if name not in names]
    if wrong:
        raise UserError(f"dataset.domains: {wrong[0]!r} is not in {path}, allowed: {', '.join(names) or 'none, it has no domains'}")
    if chosen and len(set(chosen)) < len(chosen):
        raise UserError("dataset.domains: each domain may be listed once")
    if not names:
        return images
    number = np.full(len(names), -1)
    number[[names.index(name) for name in chosen or names]] = np.arange(len(chosen or names))
    domains = number[_domain_numbers(path, headers, f"domains_{split}")]
    return replace(images, domains=domains).subset(np.flatnonzero(domains >= 0))


def _names(path: Path, headers: dict[str, Header], labels: dict[str, np.ndarray]) -> list[str]:
    """The class names by label. Raises UserError."""
    count = int(max(some.max() for some in labels.values())) + 1
    key = next((key for key in NAME_KEYS if key in headers), None)
    if key is None:
        return [str(i) for i in range(count)]
    shape, dtype = headers[key]
    if len(shape) != 1 or dtype.kind not in "USiu":
        raise UserError(f"{path}: {key} is {dtype} of shape {shape}, allowed: (K,) text, one name per class")
    if shape[0] < count:
        raise UserError(f"{path}: {key} has {shape[0]} names, but the labels go up to {count - 1}")
    if shape[0] > label_limit(sum(map(len, labels.values()))):
        raise UserError(f"{path}: {key} has {shape[0]} names for {sum(map(len, labels.values()))} images; every class needs an image")
    try:
        names = [name.decode() if isinstance(name, bytes) else str(name) for name in _array(path, key).tolist()]
    except UnicodeDecodeError:
        raise UserError(f"{path}: {key} holds bytes that are not UTF-8; save the names as text, numpy.array(names, dtype=str)") from None
    twice = next((name for name, times in Counter(names).items() if times > 1), None)
    if twice is not None:
        raise UserError(f"{path}: {key} has {twice!r} more than once; each class needs a name of its own, by which a resumed or extended "
                        "run knows it again")
    return names
