"""Index files: text files that say which training images are meant, one a line, as few-shot benchmarks publish them.

A line is a file's path, of which the folder and the name must be those of an image ("CUB_200_2011/images/101.White_Pelican/a.jpg" is
found in any layout that keeps the class folders), or the number of a training image in the data set's own order, from 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from utils.data.notes import some
from utils.data.paths import Paths
from utils.data.places import find_place
from utils.data.types import ImageSet
from utils.errors import UserError

KEY = "few_shot.images"
MOST_BYTES = 2**26  # of one file


def listed_images(files: Sequence[str], images: ImageSet) -> np.ndarray:
    """(n,) int64 ascending: positions in `images` of all that the files list.

    Raises:
        UserError: a file is missing, or lists what is not there or an image twice.
    """
    lines = [(file, line) for file in files for line in _lines(file)]
    if not lines:
        raise UserError(f"{KEY}: {some(list(files)) or 'no file'} {'lists' if len(files) == 1 else 'list'} no image; allowed: text files "
                        "with one image a line")
    found = _by_number(lines, len(images)) if all(line.isdecimal() for _, line in lines) else _by_path(lines, images)
    positions, counts = np.unique(np.array(found, dtype=np.int64), return_counts=True)
    if (counts > 1).any():
        twice = positions[counts > 1][0]
        file, line = next(given for given, position in zip(lines, found, strict=True) if position == twice)
        raise UserError(f"{KEY}: {file} lists {line} twice, or it is in two files; allowed: every image once")
    return positions


def _lines(file: str) -> list[str]:
    place = find_place(file)
    if not place.path.is_file():
        raise UserError(f"{KEY}: {place.missing if not place.exists else f'{place.path} is no regular file'}; allowed: text files with one "
                        "image a line, a path or a number")
    try:
        with place.path.open("rb") as stream:
            data = stream.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise UserError(f"{KEY}: {place.path} has more than {MOST_BYTES:,} bytes; is it a list of images?")
        return [line.strip() for line in data.decode("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{KEY}: {place.path} cannot be read as text: {getattr(error, 'strerror', None) or error}") from None


def _by_number(lines: Sequence[tuple[str, str]], count: int) -> list[int]:
    for file, line in lines:
        if len(line) > 18 or int(line) >= count:
            raise UserError(f"{KEY}: {file} lists image {line[:20]}, allowed: 0 to {count - 1}, the data set's training images in its own "
                            "order")
    return [int(line) for _, line in lines]


def _by_path(lines: Sequence[tuple[str, str]], images: ImageSet) -> list[int]:
    if not isinstance(images.images, Paths):
        file, line = next(given for given in lines if not given[1].isdecimal())
        raise UserError(f"{KEY}: {file} lists {line[:80]!r}, allowed: numbers 0 to {len(images) - 1}, because this data set's images are "
                        "in one array and have no paths")
    position: dict[tuple[str, ...], int] = {}
    for i, path in enumerate(images.images):
        position[_ending(path)] = -1 if _ending(path) in position else i
    found = [position.get(_ending(PurePosixPath(line))) for _, line in lines]
    for (file, line), at in zip(lines, found, strict=True):
        if at is None or at < 0:
            problem = "is no training image of the data set" if at is None else "may be one of several training images"
            raise UserError(f"{KEY}: {file} lists {line[:80]!r}, which {problem}; allowed: paths that end in a training image's folder and "
                            "name, or numbers")
    return [at for at in found if at is not None]


def _ending(path: Path | PurePosixPath) -> tuple[str, ...]:
    return path.parts[-2:]
