"""Uploaded bytes: what is read, and what is refused before it can do harm."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from models.serve.uploads import Limits, Refused, Upload, class_folder_name, decode

LIMITS = Limits(pixels=40_000)


def encoded(kind: str = "PNG", size: tuple[int, int] = (20, 10), mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(stream, kind)
    return stream.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header speaks of a huge image."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_images_of_every_usual_kind_are_read(kind):
    found = decode(Upload("photo", encoded(kind)), LIMITS)
    assert found.pixels.shape == (10, 20, 3) and found.pixels.dtype == np.uint8
    assert Image.registered_extensions()[found.suffix] == kind


HOSTILE = {
    "empty": (b"", 422),
    "text": (b"hello", 415),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', 415),
    "html": (b"<!doctype html><script>alert(1)</script>", 415),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", 415),
    "cut short": (encoded()[:-40], 422),
    "cut in its header": (encoded()[:20], 422),
    "a broken JPEG": (encoded("JPEG")[:200], 422),
    "a bomb by its header": (png_that_claims(50_000, 50_000), 413),
    "a bomb that Pillow only warns of": (png_that_claims(9_000, 9_000), 413),
    "real, but too large": (encoded(size=(201, 200)), 413),
    "a strip that resizing would blow up": (encoded(size=(2_000, 1)), 422),
    "no width": (png_that_claims(0, 10), 415),
    "floating-point pixels": (encoded("TIFF", mode="F"), 422),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_image_or_too_large_is_refused_in_words(case):
    data, status = HOSTILE[case]
    with pytest.raises(Refused) as refused:
        decode(Upload.of("photo.png", data), LIMITS)
    assert refused.value.status == status
    assert "photo.png" in refused.value.why and "<script" not in refused.value.why


def test_any_byte_changed_or_cut_off_gives_pixels_or_a_refusal():
    rng = np.random.default_rng(1)
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        whole = encoded(kind)
        for _ in range(40):
            data = bytearray(whole[:rng.integers(1, len(whole) + 1)])
            data[rng.integers(len(data))] = rng.integers(256)
            try:
                assert decode(Upload("x", bytes(data)), LIMITS).pixels.dtype == np.uint8
            except Refused as refused:
                assert refused.status in (413, 415, 422)


@pytest.mark.parametrize(("given", "shown"), [("../../etc/passwd", "passwd"), ("C:\\photos\\a.png", "a.png"), ("", "image"), ("..", ".."),
                                              ("a\x1b[31m\n.png", r"a\x1b[31m\n.png"), ("a" * 500, "a" * 100)])
def test_a_files_name_is_shown_in_one_short_line_and_without_its_folders(given, shown):
    assert Upload.of(given, b"").name == shown


def test_a_class_may_have_any_name_that_can_name_a_folder():
    for name in ("key", "house key", "clé", "钥匙", "<img src=x onerror=alert(1)>", "a'; DROP TABLE"):
        assert class_folder_name(f" {name} ") == name
    for name in ("", "  ", ".", "..", ".hidden", "a/b", "..\\x", "a\0b", "a\nb", "a\x1b[0m", "x" * 101, "钥" * 80, "\ud800", "end."):
        with pytest.raises(Refused, match="class: got"):
            class_folder_name(name)
