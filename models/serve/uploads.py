"""Uploaded bytes -> pixels, within limits and in memory alone. Whoever sends them is a stranger: every refusal is one clear sentence."""

from __future__ import annotations

import io
import unicodedata
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from utils.errors import UserError
from utils.images.store import pixels_of
from utils.terminal import visible_name

FORMATS = {"PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif", "AVIF": ".avif"}
LONGEST_NAME = 100  # characters of a file's or a class's name


@dataclass(frozen=True)
class Limits:
    """What one request may hold."""

    bytes: int = 32 * 2**20
    images: int = 256
    pixels: int = 50_000_000  # of one image, once decoded
    stretch: int = 100  # longest side over shortest: resizing the shorter side of a thin strip would blow up the longer one
    seconds: float = 30.0  # that the body may take to arrive


class Refused(Exception):
    """A request that is not answered: the HTTP status and why, in words for whoever sent it."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


@dataclass(frozen=True)
class Upload:
    """One file of a request. Its name is shown, and never names a file here."""

    name: str
    data: bytes

    @classmethod
    def of(cls, name: str, data: bytes) -> Upload:
        """With the last part of the path that the sender calls it by, as one line."""
        last = PurePosixPath(name.replace("\\", "/")).name
        return cls(visible_name(last)[:LONGEST_NAME] or "image", data)


@dataclass(frozen=True)
class Decoded:
    pixels: np.ndarray  # (H, W, 3) uint8
    suffix: str  # of a file with these bytes


def decode(upload: Upload, limits: Limits) -> Decoded:
    """The pixels of an uploaded image, the first frame of an animation.

    Raises:
        Refused: it is empty, no image of a format in `FORMATS`, damaged, or too large once decoded.
    """
    name = upload.name
    if not upload.data:
        raise Refused(422, f"{name} is empty; send an image")
    try:
        with Image.open(io.BytesIO(upload.data), formats=_installed()) as image:
            _check_size(name, *image.size, limits)
            return Decoded(pixels_of(image, name), FORMATS[image.format or "PNG"])
    except Refused:
        raise
    except UserError as error:  # pixels of an unknown range
        raise Refused(422, str(error)) from None
    except Image.DecompressionBombError:
        raise _too_many_pixels(name, limits) from None
    except Image.UnidentifiedImageError:
        raise Refused(415, f"{name} is no image of a kind that is read here; allowed: {', '.join(_installed())}") from None
    except Exception as error:  # decoders raise errors of many kinds on damaged files; all mean the same
        raise Refused(422, f"{name} is damaged or cut short ({visible_name(str(error))[:200]})") from None


def class_folder_name(name: str) -> str:
    """The name of a class, in one Unicode spelling, if it can also name a folder. Raises Refused."""
    name = unicodedata.normalize("NFC", name.strip())
    if (not name or len(name) > LONGEST_NAME or name.startswith(".") or name.endswith(".") or {"/", "\\"} & set(name)
            or name != visible_name(name) or len(name.encode(errors="surrogatepass")) > 200):
        raise Refused(422, f"class: got {visible_name(name)[:LONGEST_NAME]!r}, allowed: a name of 1 to {LONGEST_NAME} characters without "
                           "/ and \\ and without a dot at an end")
    return name


def _installed() -> list[str]:
    """The formats of `FORMATS` that this Pillow was built with."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN and name != "MPO"]  # a phone's MPO opens as JPEG


def _check_size(name: str, width: int, height: int, limits: Limits) -> None:
    """Before a pixel is decoded. Raises Refused."""
    if width * height > limits.pixels:
        raise _too_many_pixels(name, limits)
    if max(width, height) > limits.stretch * min(width, height):
        raise Refused(422, f"{name} has {width} x {height} pixels; allowed: a longest side of at most {limits.stretch} times the shortest")


def _too_many_pixels(name: str, limits: Limits) -> Refused:
    return Refused(413, f"{name} has too many pixels; allowed: {limits.pixels:,}, so make it smaller and send it again")
