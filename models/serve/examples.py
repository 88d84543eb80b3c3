"""A few training images of each class, for the page; of classes whose images are not on this machine any more there are none."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from utils.config import Config, DatasetSpec
from utils.data.added import load_added
from utils.data.notes import told_before
from utils.data.places import home_expanded
from utils.data.registry import dataset_info, load_dataset
from utils.data.types import ImageSet, Splits
from utils.errors import UserError
from utils.images.store import read_image

log = logging.getLogger("slca.serve")
PER_CLASS = 4
SIDE = 112  # pixels, of the longer side as it is shown


def find_examples(config: Config) -> dict[str, list[Path | np.ndarray]]:
    """Class name -> up to `PER_CLASS` of its training images, files or (H, W, C) uint8; read where the run's config names them."""
    found: dict[str, list[Path | np.ndarray]] = {}
    with told_before():
        for load in _places(config):
            try:
                train, _, names = load()
            except (UserError, OSError) as error:
                log.info("no example images: %s", error)
                continue
            for label, name in enumerate(names):
                found.setdefault(name, list(_some(train, label)))
    return found


def _places(config: Config) -> Iterator[Callable[[], Splits]]:
    """The data set and the tasks added later; never a data set that would have to be downloaded first."""
    folder = "" if isinstance(config.dataset, DatasetSpec) else dataset_info(config.dataset).folder
    if not folder or (home_expanded(config.data_root) / folder).is_dir():
        yield partial(load_dataset, config.dataset, config.data_root)
    for task in config.added or []:
        yield partial(load_added, task)


def _some(images: ImageSet, label: int) -> Iterator[Path | np.ndarray]:
    members = np.flatnonzero(images.labels == label)
    for position in members[np.linspace(0, len(members) - 1, min(PER_CLASS, len(members)), dtype=int)]:
        yield images.images[int(position)]


def picture(place: Path | np.ndarray) -> bytes:
    """A small PNG of an example. Raises UserError: its file is gone or damaged."""
    pixels = read_image(place) if isinstance(place, Path) else place
    image = Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
    image.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
