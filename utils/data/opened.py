"""The images of a run, opened once for all its seeds: read or decoded as `cache` says, of one place or of several."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from utils.config import Config
from utils.data.added import Learned, Part, load_parts
from utils.data.fingerprint import Fingerprint, image_digests
from utils.data.folders import check_classes
from utils.data.held_out import validation_notes
from utils.data.notes import tell
from utils.data.places import home_expanded
from utils.data.types import ImageSet
from utils.errors import UserError
from utils.images.cache import open_files
from utils.images.store import ArrayStore, FileStore, ImageStore, JoinedStore


@dataclass(frozen=True)
class OpenedImages:
    """All images as they are on disk or in memory, of one place or of several (`added`); the same for every seed."""

    parts: list[Part]
    stores: dict[str, ImageStore]
    notes: tuple[str, ...] = ()  # what was passed over, reinterpreted or left out; told when it was found
    learned: Learned | None = None  # what is extended by the last part
    _digests: dict[str, np.ndarray] = field(default_factory=dict)  # what `digests` found, by split

    def count(self, split: str) -> int:
        return sum(map(len, self._sets(split)))

    def labels(self, split: str) -> np.ndarray:
        """(N,) int64 own labels."""
        return np.concatenate([images.labels for images in self._sets(split)])

    def domains(self, split: str) -> np.ndarray | None:
        """(N,) int64; None for a set without domains."""
        found = [images.domains for images in self._sets(split)]
        if all(domains is None for domains in found):
            return None
        return np.concatenate([np.empty(0, np.int64) if domains is None else domains for domains in found])  # None: no image is left

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Of all parts; of learned classes, whose images may be gone, as it was."""
        before = {} if self.learned is None else self.learned.fingerprint
        new = self.parts if self.learned is None else self.parts[-1:] if self.learned.extended else []
        now = [part.fingerprint() for part in new]
        return {split: {name: entry for found in (before, *now) for name, entry in found.get(split, {}).items()}
                for split in ("train", "test")}

    def digests(self, split: str) -> np.ndarray:
        """(N, 16) uint8 a hash of each image's bytes; made once. Raises UserError: a file is gone."""
        if split not in self._digests:
            self._digests[split] = np.concatenate([image_digests(images) for images in self._sets(split)])
        return self._digests[split]

    @classmethod
    def open(cls, config: Config, world_size: int, learned: Learned | None, old_images: bool) -> OpenedImages:
        """Load the images, decode and keep them as `cache` says, leave out unreadable ones if they may be."""
        parts, stores, notes = zip(*(_opened(part, config, world_size) for part in load_parts(config, learned, old_images=old_images)),
                                   strict=True)
        if len(parts) > 1:
            counts = {"train": [len(part.train) for part in parts], "test": [len(part.test) for part in parts]}
            stores = [{split: JoinedStore([opened[split] for opened in stores], counts[split]) for split in counts}]
        return cls(list(parts), stores[0], tuple(itertools.chain.from_iterable(notes)), learned)

    def _sets(self, split: str) -> list[ImageSet]:
        return [part.train if split == "train" else part.test for part in self.parts]


def _opened(part: Part, config: Config, world_size: int) -> tuple[Part, dict[str, ImageStore], list[str]]:
    """One place's images that can be read, their stores, and notes."""
    sets: list[ImageSet] = []
    stores: dict[str, ImageStore] = {}
    notes = list(part.train.notes)
    for split, images in (("train", part.train), ("test", part.test)):
        if isinstance(images.images, np.ndarray):
            stores[split] = ArrayStore(images.images)
        elif not len(images):
            stores[split] = FileStore(images.images)
        else:
            stores[split], kept = open_files(images.images, config.cache, name=f"{part.where} {split}", processes=world_size,
                                             folder=home_expanded(config.data_root) / "cache", skip_bad=config.bad_images == "skip")
            if len(kept) < len(images):
                notes.append(_left_out(images, kept, split))
                images = images.subset(kept)
        sets.append(images)
    train, test = sets
    later = validation_notes(config, train)
    if len(train) + len(test) < len(part.train) + len(part.test):
        later += check_classes(train, test, part.names, f"data set {part.where}")
    later = [note for note in later if note not in notes]
    return replace(part, train=train, test=test), stores, [*notes, *tell(f"data set {part.where}", later)]


def _left_out(images: ImageSet, kept: np.ndarray, split: str) -> str:
    """A note about unreadable images. Raises UserError if there are no others."""
    bad = np.setdiff1d(np.arange(len(images)), kept)
    told = f"{len(bad)} of {len(images)} images of the split {split!r} cannot be read"
    if not len(kept):
        raise UserError(f"{told}, the first is {images.images[0]}; no image is left, are these image files?")
    return f"{told} and are left out, the first is {images.images[int(bad[0])]}"
