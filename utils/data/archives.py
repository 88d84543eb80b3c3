"""A folder, an archive, or a folder of archives as one flat list of files that can only be read.

No link is followed or made, and no name that would leave the target is let through: such an archive is refused. The
source is never written to.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from utils.errors import UserError

log = logging.getLogger("slca.data")

ByteFile = IO[bytes] | gzip.GzipFile
NOTES = {".txt", ".mat", ".json", ".csv"}  # small files that say what the others are; kept while the names are listed
MAX_NOTE = 64 * 2**20  # bytes; the largest of them (DomainNet's lists) take 8 MiB
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, gzip.BadGzipFile, RuntimeError, NotImplementedError)


class Member(NamedTuple):
    """One file of a source."""

    name: str  # relative, with forward slashes
    size: int | None  # bytes; None for a single gzip file
    file: ByteFile  # its bytes; open only until the next member is asked for


@dataclass
class Source:
    """What `prepare` was pointed at; `names` and `read` make it one of the layouts' `Files`."""

    path: Path
    sizes: dict[str, int | None] = field(default_factory=dict)
    notes: dict[str, bytes] = field(default_factory=dict)
    links: int = 0  # passed over

    @classmethod
    def open(cls, path: Path) -> Source:
        """List all files of `path`, once. Raises UserError: missing, no archive, damaged, or unsafe names."""
        if not path.exists():
            raise UserError(f"--source {path} does not exist; name the archive you downloaded, or the folder it is in")
        source = cls(path)
        for member in source.members():
            if member.name in source.sizes:
                raise UserError(f"{path}: {member.name} is there twice; name one archive or folder at a time")
            source.sizes[member.name] = member.size
            if PurePosixPath(member.name).suffix.lower() in NOTES and (member.size or 0) <= MAX_NOTE:
                with damage_told(path):
                    source.notes[member.name] = member.file.read(MAX_NOTE)
        if source.links:
            log.warning("%s: %d links were passed over; only real files are taken", path, source.links)
        return source

    def names(self) -> list[str]:
        return list(self.sizes)

    def read(self, name: str) -> bytes:
        """A note's bytes (annotations and lists)."""
        return self.notes[name]

    def members(self, wanted: Collection[str] | None = None) -> Iterator[Member]:
        """All files, or those of the names `wanted`, in the order in which they lie in the source."""
        self.links = 0
        if self.path.is_file():
            yield from self._container(self.path, "", wanted)
            return
        for folder, _, files in os.walk(self.path):  # does not follow links to folders
            for file in sorted(files):
                path = Path(folder) / file
                inside = path.relative_to(self.path).as_posix()
                if path.is_symlink() or not path.is_file():
                    self.links += 1
                elif _kind(path) is not None:
                    yield from self._container(path, inside.rpartition("/")[0], wanted)
                elif wanted is None or inside in wanted:
                    with open(path, "rb") as handle:
                        yield Member(inside, path.stat().st_size, handle)

    def _container(self, path: Path, prefix: str, wanted: Collection[str] | None) -> Iterator[Member]:
        """The files in one archive, named as if it had been unpacked beside itself."""
        kind = _kind(path)
        if kind is None:
            raise UserError(f"{path} is no archive that can be read, allowed: zip, tar, tar.gz, tgz, tar.bz2, tar.xz, gz, or a folder")
        with damage_told(path):
            for name, size, file in {"tar": self._tar, "zip": self._zip, "gz": self._gz}[kind](path, prefix, wanted):
                yield Member(name, size, file)

    def _tar(self, path: Path, prefix: str, wanted: Collection[str] | None) -> Iterator[tuple[str, int, ByteFile]]:
        with tarfile.open(path, "r:*") as archive:
            for item in archive:
                name = _safe_name(path, prefix, item.name)
                if not item.isfile():
                    self.links += item.issym() or item.islnk()
                elif wanted is None or name in wanted:
                    file = archive.extractfile(item)
                    assert file is not None, "a regular file has bytes"
                    yield name, item.size, file

    def _zip(self, path: Path, prefix: str, wanted: Collection[str] | None) -> Iterator[tuple[str, int, ByteFile]]:
        with zipfile.ZipFile(path) as archive:
            for item in archive.infolist():
                name = _safe_name(path, prefix, item.filename)
                mode = item.external_attr >> 16
                if item.is_dir():
                    continue
                if mode and stat.S_ISLNK(mode):
                    self.links += 1
                elif wanted is None or name in wanted:
                    with archive.open(item) as file:
                        yield name, item.file_size, file

    def _gz(self, path: Path, prefix: str, wanted: Collection[str] | None) -> Iterator[tuple[str, None, ByteFile]]:
        name = _safe_name(path, prefix, path.stem)
        if wanted is None or name in wanted:
            with gzip.open(path, "rb") as file:
                yield name, None, file


@contextlib.contextmanager
def damage_told(path: Path) -> Iterator[None]:
    """Turn what the archive modules raise while `path` is read into one sentence."""
    try:
        yield
    except DAMAGED as error:
        raise UserError(f"archive {path} is damaged, incomplete or encrypted ({error}); download it again") from None


def _kind(path: Path) -> str | None:
    """"tar", "zip" or "gz" (one compressed file), by content; None for anything else."""
    with contextlib.suppress(OSError, EOFError, zlib.error):
        if path.suffix.lower() in {".tar", ".tgz", ".gz", ".bz2", ".xz", ".tbz2", ".txz"} and tarfile.is_tarfile(path):
            return "tar"
        if path.suffix.lower() == ".zip":
            return "zip"
    return "gz" if path.suffix.lower() == ".gz" and not path.name.lower().endswith(".tar.gz") else None


def _safe_name(archive: Path, prefix: str, name: str) -> str:
    """The member's name under the source, or an error if unpacking it would leave the target."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in name or (path.parts and ":" in path.parts[0]):
        raise UserError(f"archive {archive} holds the unsafe path {name!r}; nothing of it was unpacked, get it from its official source")
    return str(PurePosixPath(prefix) / path)
