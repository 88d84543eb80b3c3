"""Folders of small drawn images, one sub-folder per class, for tests that need files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 16  # pixels a side


def pixels(name: str, count: int, split: str = "train") -> np.ndarray:
    """(count, 16, 16, 3) uint8: the class's own pattern under noise, the same for the same arguments."""
    pattern = np.random.default_rng([*name.encode()]).integers(40, 216, (SIZE, SIZE, 3))
    noise = np.random.default_rng([*f"{name} {split}".encode()]).normal(0, 25, (count, SIZE, SIZE, 3))
    return (pattern + noise).clip(0, 255).astype(np.uint8)


def draw(folder: Path, names: Sequence[str], count: int, split: str = "train") -> Path:
    """`count` images of every class in `folder`/<class>/."""
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(pixels(name, count, split)):
            Image.fromarray(image).save(folder / name / f"{number}.png")
    return folder
