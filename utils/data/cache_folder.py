"""What runs keep under data_root/cache: decoded images (`"cache": "disk"`), features (`"feature_cache": "disk"`) and the lists of
large sets' files (utils/data/index.py); `main.py cache`.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from utils.data.feature_store import RECIPE_FILE, SUFFIX
from utils.files import bytes_of_file

Kind = Literal["images", "features", "lists"]
KIND_WORDS: dict[Kind, str] = {"images": "decoded images", "features": "features", "lists": "lists of files"}
KINDS = tuple(KIND_WORDS)
SHORT = 12  # letters of a checksum or a folder that are shown


@dataclass(frozen=True)
class Kept:
    """One thing in the cache: the images of one split, the features of one recipe, or the list of one set's files."""

    kind: Kind
    path: Path  # a file, or the recipe's folder
    words: str
    bytes: int
    used: float  # when, in seconds since 1970


def kept(root: Path, kinds: Sequence[Kind] = KINDS) -> list[Kept]:
    """All that the cache folder `root` holds of these kinds, the most recently used first."""
    found = [*_files(root, "images", "*.bin"), *_features(root / "features"), *_files(root, "lists", "index-*.npz")]
    return sorted((each for each in found if each.kind in kinds), key=lambda each: -each.used)


def clear(root: Path, kinds: Sequence[Kind] = KINDS) -> list[Kept]:
    """Delete what the cache holds of these kinds, and return it; a run that reads it meanwhile goes on, or makes it anew."""
    gone = kept(root, kinds)
    for found in gone:
        if found.kind == "features":
            shutil.rmtree(found.path, ignore_errors=True)
        else:
            found.path.unlink(missing_ok=True)
    return gone


def table(found: list[Kept], root: Path, kinds: Sequence[Kind] = KINDS) -> str:
    """One line for each thing, and their sum. `kinds` were looked for."""
    if not found:
        return f"{root} holds {' and '.join(f'no {KIND_WORDS[kind]}' for kind in kinds)}"
    lines = [f"{each.kind:8}  {each.bytes / 1e6:10,.1f} MB  {time.strftime('%Y-%m-%d %H:%M', time.localtime(each.used))}  {each.words}"
             for each in found]
    return "\n".join([*lines, f"{sum(each.bytes for each in found) / 1e6:,.1f} MB in {root}"])


def _files(root: Path, kind: Kind, pattern: str) -> Iterator[Kept]:
    for file in root.glob(pattern):
        with suppress(OSError):
            found = file.lstat()
            yield Kept(kind, file, file.name, found.st_size, max(found.st_atime, found.st_mtime))


def _features(root: Path) -> Iterator[Kept]:
    for folder in root.glob("*"):
        if folder.is_symlink() or not folder.is_dir():
            continue
        stats = []
        for pack in folder.glob(f"*{SUFFIX}"):
            with suppress(OSError):
                stats.append(pack.lstat())
        size = sum(stat.st_size for stat in stats)
        yield Kept("features", folder, _recipe_words(folder), size, max((stat.st_mtime for stat in stats), default=0.0))


def _recipe_words(folder: Path) -> str:
    """"vit_base_patch16_224 1fa2..., 224 px, cls+mean"; the folder's name where its recipe cannot be read."""
    try:
        recipe: dict[str, Any] = json.loads(bytes_of_file(folder / RECIPE_FILE))
        backbone, views = recipe["backbone"], recipe["method"].get("views", 1)
        return (f"{backbone['timm']}, weights {backbone['sha256'][:SHORT]}, {recipe['input']['size']} px, {'+'.join(backbone['parts'])}"
                + (f", {views} views" if views > 1 else "") + f"  {folder.name[:SHORT]}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return folder.name
