"""Walking through folders as users have them: links, cycles of links, hidden files, system folders, other kinds of files.

Links to files and folders are followed; a folder is read once per class, so that a cycle ends. What is not taken goes into
a `PassedOver`, so that nothing is lost without a word. The order is that of the paths' parts, compared as text.
"""

from __future__ import annotations

import contextlib
import os
import stat
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from utils.data.index import note_place
from utils.data.notes import PassedOver
from utils.errors import UserError

EXTENSIONS = {".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjp", ".png", ".apng", ".bmp", ".dib", ".gif", ".webp", ".avif",
              ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".jpf", ".tga"}
SYSTEM_NAMES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "$recycle.bin", "system volume information", "lost+found", "@eadir",
                "#recycle", "__pycache__"}  # what Windows, macOS, NAS devices and Python leave behind; in lower case

Identity = tuple[int, int]  # device and inode of a folder: the same behind whatever link


def is_image(name: str) -> bool:
    """Whether a file of this name (or path with forward slashes) is taken as an image."""
    name = PurePosixPath(name).name
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden or belongs to a system."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def same_spelling(name: str) -> str:
    """`name` in one Unicode spelling: "é" as one character, whether it was written as one or as "e" and an accent."""
    return unicodedata.normalize("NFC", name)


def spelled_on_disk(path: Path) -> Path | None:
    """`path`, or the one that differs from it in its Unicode spelling alone, whichever exists."""
    if os.path.exists(path):
        return path
    if not path.name or path.as_posix().isascii():
        return None
    parent = spelled_on_disk(path.parent)
    if parent is None or not os.path.isdir(parent):
        return None
    return next((parent / name for name in sorted(os.listdir(parent)) if same_spelling(name) == same_spelling(path.name)), None)


def sub_folders(folder: Path, passed: PassedOver) -> list[str]:
    """Names of the folders in `folder` that may be classes, sorted."""
    above = _identities_upwards(folder)
    found = []
    for entry in _entries(str(folder)):
        kind = _kind(entry)
        if is_hidden(entry.name):
            passed.add(PassedOver.HIDDEN, entry.path)
        elif kind == "folder" and entry.is_symlink() and _identity(entry.path) in above:
            passed.add(PassedOver.LOOP, entry.path)
        elif kind == "folder":
            found.append(entry.name)
        elif kind != "file":
            passed.add(kind, entry.path)
        elif is_image(entry.name):
            passed.add(PassedOver.BESIDE, entry.path)
    return found


def images_below(folder: Path, passed: PassedOver) -> Iterator[tuple[str, str]]:
    """(folder, file name) of every image under `folder`, in order."""
    seen = {*_identities_upwards(folder.parent), _identity(str(folder))}
    waiting = [iter(_entries(str(folder)))]
    while waiting:
        entry = next(waiting[-1], None)
        if entry is None:
            waiting.pop()
            continue
        kind = _kind(entry)
        if is_hidden(entry.name):
            passed.add(PassedOver.HIDDEN, entry.path)
        elif kind == "folder":
            identity = _identity(entry.path)
            if identity in seen:
                passed.add(PassedOver.LOOP, entry.path)
            else:
                seen.add(identity)
                waiting.append(iter(_entries(entry.path)))
        elif kind != "file":
            passed.add(kind, entry.path)
        elif is_image(entry.name):
            yield os.path.dirname(entry.path), entry.name
        else:
            passed.add(PassedOver.OTHER, entry.path)


def files_below(folder: Path) -> list[str]:
    """Paths of all files under `folder`, relative to it, with forward slashes, sorted; links are followed, cycles end."""
    found, seen, waiting = [], {_identity(str(folder))}, [str(folder)]
    cut = len(os.path.join(folder, ""))
    while waiting:
        for entry in _entries(waiting.pop()):
            kind = _kind(entry)
            if kind == "file":
                found.append(entry.path[cut:].replace(os.sep, "/"))
            elif kind == "folder" and _identity(entry.path) not in seen:
                seen.add(_identity(entry.path))
                waiting.append(entry.path)
    return sorted(found)


def has_images(folder: Path) -> bool:
    """Whether there is an image somewhere under `folder`."""
    return next(images_below(folder, PassedOver(folder)), None) is not None


def _entries(folder: str) -> list[os.DirEntry[str]]:
    note_place(folder)
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(folder, error) from None


def _unreadable(folder: str, error: OSError) -> UserError:
    return UserError(f"folder {folder} cannot be read ({error.strerror}); its images would be missing")


def _kind(entry: os.DirEntry[str]) -> str:
    """"file" or "folder", also behind a link; else a kind of `PassedOver`."""
    try:
        if entry.is_file():
            return "file"
        if entry.is_dir():
            return "folder"
        os.stat(entry.path)
    except OSError:  # nothing behind a link, or links in a circle
        return PassedOver.DANGLING
    return PassedOver.SPECIAL


def _identity(folder: str) -> Identity:
    """Raises UserError where the folder is gone since it was listed."""
    try:
        found = os.stat(folder)
    except OSError as error:
        raise _unreadable(folder, error) from None
    return found.st_dev, found.st_ino


def _identities_upwards(folder: Path) -> set[Identity]:
    """Of `folder` and of all folders that it lies in."""
    real = Path(os.path.realpath(folder))
    found = set()
    for place in (real, *real.parents):
        with contextlib.suppress(UserError):  # a folder above that may not be looked into
            found.add(_identity(str(place)))
    return found


def is_file(entry: os.DirEntry[str]) -> bool:
    """Whether there is a file, also behind a link; a link that leads nowhere and a pipe are none."""
    return _kind(entry) == "file"


def is_regular(path: Path) -> bool:
    """Whether `path` is a file that can be read to an end, not a folder, pipe or device."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False
