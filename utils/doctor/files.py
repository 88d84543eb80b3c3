"""Files that a run reads: whether they are there, their checksum, and the one that is stated beside shipped files."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from utils.files import file_sha256

STATED = re.compile(r"\b[0-9a-f]{64}\b")  # a SHA-256 in a text
MOST_FILES = 200_000  # of a folder that are counted; more take long on a network drive


def file_words(file: Path) -> tuple[str, bool, dict[str, object]]:
    """Size and SHA-256 of a file; whether it is what the text beside it says it should be; the same as facts."""
    found, stated = file_sha256(file), stated_sha256(file)
    right = not stated or found in stated
    told = ", as stated beside it" if found in stated else ""
    if not right:
        told = f", but {file.with_suffix('.md').name} states {min(stated)[:12]}...: not the shipped file"
    facts = {"file": str(file), "bytes": file.stat().st_size, "sha256": found, "as_stated": right if stated else None}
    return f"{file} ({size_words(file.stat().st_size)}, SHA-256 {found[:12]}...{told})", right, facts


def stated_sha256(file: Path) -> set[str]:
    """The checksums in the Markdown file of the same name."""
    beside = file.with_suffix(".md")
    return set(STATED.findall(beside.read_text(encoding="utf-8"))) if beside.is_file() else set()


def folder_words(folder: Path) -> tuple[str, dict[str, object]]:
    """Number, bytes and a digest of the names and sizes of all files below `folder`; no file is read."""
    digest, count, total = hashlib.sha256(), 0, 0
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(parent, name)
            size = os.lstat(path).st_size
            digest.update(f"{os.path.relpath(path, folder)} {size}\n".encode(errors="surrogateescape"))
            count, total = count + 1, total + size
        if count > MOST_FILES:
            return f"{folder}/ (more than {MOST_FILES:,} files)", {"folder": str(folder), "files": count}
    facts = {"folder": str(folder), "files": count, "bytes": total, "names_and_sizes_sha256": digest.hexdigest()}
    return f"{folder}/ ({count:,} files, {size_words(total)}, names and sizes {digest.hexdigest()[:12]}...)", facts


def size_words(size: int) -> str:
    """"1.4 MB"; decimal units, as downloads are told in."""
    number = float(size)
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"
