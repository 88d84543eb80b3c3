"""Features of images that runs share: what `"feature_cache": "disk"` keeps under data_root/cache/features.

A feature follows from the image's bytes and from all that reads them: weights, architecture, transform, arithmetic, versions. The latter
is the *recipe*, a folder that its hash names; the former is the image's digest, which names a row in it. Every pass that had features to
compute adds one file, a *pack*: digests (n, 16), features (n, D) float32 and a checksum of both.

Runs need no lock: a pack is written under another name, takes its own name when it is whole, and never changes. Two runs that compute the
same rows write the same pack. It is derived data: a pack that is damaged, gone or cannot be written costs a pass over the images, no more.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from utils.files import write_atomic

log = logging.getLogger("slca.data")

FORMAT = 1
DIGEST_BYTES = 16
SUFFIX = ".safetensors"
RECIPE_FILE = "recipe.json"
GIB = 2**30


class FeatureStore:
    """Rows of one recipe, by the images' digests.

    Args:
        root: the folder of all recipes.
        recipe: what the features depend on beside the image; JSON.
        limit: bytes that all recipes together may take; the packs not used for the longest time are deleted first.
    """

    def __init__(self, root: Path, recipe: Mapping[str, Any], limit: int) -> None:
        self.root, self.limit = root, limit
        self.recipe = {"format": FORMAT, **recipe}
        text = json.dumps(self.recipe, sort_keys=True)
        self.folder = root / hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).hexdigest()
        self._known: set[Path] = set()  # packs whose digests are in `_rows`
        self._rows: dict[bytes, tuple[Path, int]] = {}  # digest -> its pack, and the row there
        self._features: dict[Path, np.ndarray] = {}  # (n, D) of each pack that was needed
        self._writes = True

    def read(self, digests: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Which images (n,) bool are known, by their digests (n, 16) uint8, and the feature (D,) of each of those, in order."""
        self._look_for_packs()
        for pack in {place[0] for digest in digests if (place := self._rows.get(digest.tobytes())) is not None}:
            self._need(pack)
        places = [self._rows.get(digest.tobytes()) for digest in digests]
        known = np.array([place is not None for place in places], dtype=bool)
        return known, [self._features[pack][row] for pack, row in filter(None, places)]

    def add(self, digests: np.ndarray, features: np.ndarray) -> None:
        """Keep features (n, D) float32 under the images' digests (n, 16) uint8, then delete what is over the limit."""
        if not len(digests) or not self._writes:
            return
        pack = self.folder / (hashlib.blake2b(digests.tobytes(), digest_size=DIGEST_BYTES).hexdigest() + SUFFIX)
        try:
            if not (self.folder / RECIPE_FILE).exists():
                write_atomic(self.folder / RECIPE_FILE, json.dumps(self.recipe, sort_keys=True, indent=2))
            if pack.is_symlink():  # nobody's link is followed
                pack.unlink()
            write_atomic(pack, save({"digests": digests, "features": features, "checksum": _checksum(digests, features)}))
            self._enter(pack, digests)
            trim(self.root, self.limit)
        except OSError as error:
            self._writes = False
            log.warning("features cannot be kept in %s (%s); the run goes on without", self.folder, error.strerror or error)

    def _look_for_packs(self) -> None:
        """Take in the digests of packs that were not there the last time."""
        for pack in sorted(self.folder.glob(f"*{SUFFIX}")):
            if pack not in self._known:
                try:
                    with safe_open(pack, framework="numpy") as file:
                        self._enter(pack, file.get_tensor("digests"))
                except SafetensorError:
                    _drop_damaged(pack)
                except OSError:  # another run has deleted it
                    continue

    def _enter(self, pack: Path, digests: np.ndarray) -> None:
        self._known.add(pack)
        for row, digest in enumerate(digests):
            self._rows.setdefault(digest.tobytes(), (pack, row))

    def _need(self, pack: Path) -> None:
        """Have the features of a pack in memory, and the pack marked as used; where it is of no use, its rows are not known any more."""
        if pack not in self._features:
            features = _features_of(pack)
            if features is None:
                self._rows = {digest: place for digest, place in self._rows.items() if place[0] != pack}
                self._known.discard(pack)
                return
            self._features[pack] = features
        with suppress(OSError):  # another run has deleted it: its rows are here
            os.utime(pack)


def _features_of(pack: Path) -> np.ndarray | None:
    """(n, D) of a pack; None where it is gone or damaged, then it is deleted, with a warning."""
    try:
        content = load(pack.read_bytes())
        whole = np.array_equal(content["checksum"], _checksum(content["digests"], content["features"]))
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError):
        whole = False
    if whole and content["digests"].shape == (len(content["features"]), DIGEST_BYTES):
        return content["features"]
    _drop_damaged(pack)
    return None


def _drop_damaged(pack: Path) -> None:
    log.warning("%s is damaged; its features are computed again", pack)
    with suppress(OSError):
        pack.unlink()


def _checksum(digests: np.ndarray, features: np.ndarray) -> np.ndarray:
    """(32,) uint8 SHA-256 of a pack's content, shapes included."""
    digest = hashlib.sha256(f"{digests.shape}{features.shape}{features.dtype}".encode())
    for part in (digests, features):
        digest.update(np.ascontiguousarray(part).data)
    return np.frombuffer(digest.digest(), dtype=np.uint8)


# All recipes -------------------------------------------------------------------------------------------------


def packs(root: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Every pack below `root`, with what the system knows of it; one that vanishes meanwhile is left out."""
    for pack in root.glob(f"*/*{SUFFIX}"):
        with suppress(OSError):
            yield pack, pack.lstat()


def trim(root: Path, limit: int) -> int:
    """Delete the packs that were not used for the longest time until all take at most `limit` bytes; returns how many went."""
    found = sorted(packs(root), key=lambda item: item[1].st_mtime_ns)
    left, gone = sum(stat.st_size for _, stat in found), 0
    for pack, stat in found:
        if left <= limit:
            break
        with suppress(FileNotFoundError):  # another run was faster
            pack.unlink()
        left, gone = left - stat.st_size, gone + 1
    if gone:
        log.info("%d files of features deleted, %.2f GiB are left (feature_cache_gb)", gone, left / GIB)
    return gone
