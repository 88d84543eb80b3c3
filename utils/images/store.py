"""Where the pixels of one split are: an array, image files, or files decoded once and kept.

Every store gives uint8 images by index: `get(indices)` -> a tensor (B, C, H, W) when all images of the store have one
size, else a list of B tensors (C, H, W).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from utils.data.paths import Paths
from utils.errors import UserError
from utils.images.transforms import Images

LEFT_OUT = " (training leaves such images out with \"bad_images\": \"skip\")"
STRETCH = 4000  # longest side over shortest: bringing the shorter side of a thinner strip to 224 would take gigabytes


class ImageStore(Protocol):
    in_memory: bool  # no decoder and no disk between an index and its pixels

    def get(self, indices: np.ndarray) -> Images: ...

    def image_bytes(self, indices: np.ndarray) -> int: ...


class ArrayStore:
    """Images of one size in one array (N, H, W, C) uint8."""

    in_memory = True

    def __init__(self, images: np.ndarray) -> None:
        self.images = torch.from_numpy(images)

    def get(self, indices: np.ndarray) -> Tensor:
        return self.images[torch.from_numpy(indices)].permute(0, 3, 1, 2)  # (B, C, H, W)

    def image_bytes(self, indices: np.ndarray) -> int:
        return len(indices) * self.images[0].numel() if len(self.images) else 0


class FileStore:
    """Image files, decoded each time they are asked for."""

    in_memory = False

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths if isinstance(paths, Paths) else Paths.of(paths)  # workers share its arrays; Path objects they would copy

    def get(self, indices: np.ndarray) -> list[Tensor]:
        return [torch.from_numpy(read_image(self.paths[i])).permute(2, 0, 1) for i in indices]

    def image_bytes(self, indices: np.ndarray) -> int:
        return sum(self.paths[i].stat().st_size for i in indices)


class JoinedStore:
    """Several stores, the images of one behind those of the other."""

    def __init__(self, stores: Sequence[ImageStore], counts: Sequence[int]) -> None:
        self.stores = stores
        self.starts = np.cumsum([0, *counts])
        self.in_memory = all(store.in_memory for store in stores)

    def get(self, indices: np.ndarray) -> Images:
        """A tensor where all come from one store that gives one, else a list."""
        of_store = np.searchsorted(self.starts, indices, side="right") - 1
        if len(indices) and (of_store == of_store[0]).all():
            return self.stores[of_store[0]].get(indices - self.starts[of_store[0]])
        return [self.stores[s].get(np.array([i - self.starts[s]]))[0] for s, i in zip(of_store, indices, strict=True)]

    def image_bytes(self, indices: np.ndarray) -> int:
        of_store = np.searchsorted(self.starts, indices, side="right") - 1
        return sum(store.image_bytes(indices[of_store == s] - self.starts[s]) for s, store in enumerate(self.stores))


def read_image(path: Path) -> np.ndarray:
    """The image at `path` as (H, W, 3) uint8, whatever its mode.

    As torchvision's loader: an alpha channel is dropped, a palette looked up, CMYK converted, an animation gives its
    first frame, and the EXIF orientation is not applied. 16-bit grey is scaled to 8 bits (torchvision clips it).

    Raises:
        UserError: the file is no image, is cut short, is an endless strip, or holds floating-point pixels.
    """
    try:
        with open(path, "rb", opener=without_waiting) as file, Image.open(file) as image:
            return pixels_of(image, path)
    except FileNotFoundError:
        raise UserError(f"image {path} does not exist; was it moved or deleted?") from None
    except NotRegular:
        raise UserError(f"image {path} is a folder, a pipe or a device and no file; remove it{LEFT_OUT}") from None
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"image {path} cannot be read ({error}); repair or remove it{LEFT_OUT}") from None


def pixels_of(image: Image.Image, path: Path | str) -> np.ndarray:
    """An opened image as (H, W, 3) uint8; `path` names it in messages. Raises UserError, and whatever its decoder does."""
    if max(image.size) > STRETCH * min(image.size):  # before a pixel is decoded
        raise UserError(f"image {path} has {image.width} x {image.height} pixels, allowed: a longest side of at most {STRETCH} times the "
                        "shortest; cut it or remove it")
    if image.mode == "F":
        raise UserError(f"image {path} holds floating-point pixels, whose range is unknown; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit grey
        grey = np.asarray(image).astype(np.int64)
        eight_bits = (grey.clip(0, 65535) * 255 + 32767) // 65535
        return np.repeat(eight_bits.astype(np.uint8)[:, :, None], 3, axis=2)
    return np.array(image.convert("RGB"))  # a copy: the tensor made of it must be writable


class NotRegular(Exception):
    """What was to be opened has no end that could be read to."""


def without_waiting(path: str, flags: int) -> int:
    """Open for reading like `os.open`, but never wait for somebody to write into a pipe. Raises NotRegular."""
    file = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise NotRegular(path)
    return file
