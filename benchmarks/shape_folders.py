"""Draw six kinds of shapes as folders of jpg and png files of many sizes, the example of docs/own_data.md.

    python benchmarks/shape_folders.py my_photos [--per_class 40]       # my_photos/bars/000.jpg, ...
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

LEAST_SIDE, LARGEST_SIDE = 120, 260  # pixels


def bars(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, ink: tuple[int, ...], width: int) -> None:
    for step in (-0.8, 0, 0.8):
        draw.line([(x + step * r, y - r), (x + step * r, y + r)], fill=ink, width=width)


def circles(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, ink: tuple[int, ...], width: int) -> None:
    draw.ellipse([x - r, y - r, x + r, y + r], fill=ink)


def crosses(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, ink: tuple[int, ...], width: int) -> None:
    draw.line([(x - r, y - r), (x + r, y + r)], fill=ink, width=width)
    draw.line([(x - r, y + r), (x + r, y - r)], fill=ink, width=width)


def rings(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, ink: tuple[int, ...], width: int) -> None:
    draw.ellipse([x - r, y - r, x + r, y + r], outline=ink, width=width)


def squares(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, ink: tuple[int, ...], width: int) -> None:
    draw.rectangle([x - r, y - r, x + r, y + r], fill=ink)


def triangles(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, ink: tuple[int, ...], width: int) -> None:
    draw.polygon([(x + r * math.sin(a), y - r * math.cos(a)) for a in (0, 2 * math.pi / 3, 4 * math.pi / 3)], fill=ink)


SHAPES: dict[str, Callable[..., None]] = {shape.__name__: shape for shape in (bars, circles, crosses, rings, squares, triangles)}


def drawing(name: str, random: np.random.Generator) -> Image.Image:
    """One shape of random place, size, turn and colours on a plain, noisy ground."""
    width, height = random.integers(LEAST_SIDE, LARGEST_SIDE + 1, 2).tolist()
    ground = random.integers(0, 256, 3)
    ink = (ground + random.integers(90, 167, 3)) % 256  # never near the ground's colour
    image = Image.new("RGB", (width, height), tuple(ground.tolist()))
    r = random.uniform(0.2, 0.34) * min(width, height)
    x, y = width * random.uniform(0.38, 0.62), height * random.uniform(0.38, 0.62)
    SHAPES[name](ImageDraw.Draw(image), x, y, r, tuple(ink.tolist()), round(r * random.uniform(0.2, 0.4)))
    image = image.rotate(random.uniform(-25, 25), fillcolor=tuple(ground.tolist()))
    noisy = np.asarray(image, np.float64) + random.normal(0, 12, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def write_folders(folder: Path, per_class: int) -> None:
    """`folder`/<shape>/<number>.jpg or .png, the same for the same arguments."""
    random = np.random.default_rng(0)
    for name in SHAPES:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            drawing(name, random).save(folder / name / f"{number:03d}{'.jpg' if number % 2 else '.png'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--per_class", type=int, default=40, metavar="N")
    arguments = parser.parse_args()
    write_folders(arguments.folder, arguments.per_class)
