"""A folder, an archive, or a folder of archives as one flat list of files that can only be read.

What is an archive is seen by its first bytes, not by its name. No link is followed or made, and no name that would leave
the target is let through: such an archive is refused. What an archive announces is limited before it is read, and no
member gives more bytes than it announced. The source is never written to.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from tqdm import tqdm

from utils.data.official import is_cars_test
from utils.data.walk import EXTENSIONS
from utils.errors import UserError
from utils.terminal import shows_bars

log = logging.getLogger("slca.data")

ByteFile = IO[bytes] | gzip.GzipFile
# Small files that say what the others are; kept while the names are listed, so that a .tgz is not unpacked again for each.
NOTES = {"images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt", "cars_annos.mat", "cars_meta.mat",
         "cars_train_annos.mat", "split.json", "train.json", "test.json", "train.txt", "test.txt", "trainval.txt", "variants.txt",
         "images_variant_trainval.txt", "images_variant_test.txt", "imagelabels.mat", "setid.mat", "train1.txt", "val1.txt", "test1.txt",
         "ClassName.txt", "Training_01.txt", "Testing_01.txt", "val_annotations.txt"}
LISTS = ("_train.txt", "_test.txt")  # DomainNet's
MAX_NOTE = 16 * 2**20  # bytes of one; the largest of them (DomainNet's lists) take 8 MiB
MAX_KEPT = 64 * 2**20  # bytes of all that are kept
MAX_FILES = 10_000_000  # names in a source; ImageNet has 1.3 million
MAX_BYTES = 2**41  # 2 TiB, of all files of a source; ImageNet has 150 GB
MAX_SINGLE_GZ = 2**30  # a .gz file does not say how much is in it; the largest that is wanted, Fashion-MNIST's, holds 47 MB
MAX_NAME = 4096  # letters of a path
MAX_TAR_HEADER = 2**20  # bytes of a tar member's extended header (a long name)
BLOCK = 2**20  # bytes read at a time
# what tarfile, zipfile and the decompressors raise for bytes that they cannot read
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, struct.error, RuntimeError,
           NotImplementedError, ValueError, OverflowError, LookupError)
OTHERS = {b"Rar!": "a rar archive; unpack it first", b"7z\xbc\xaf": "a 7z archive; unpack it first",
          b"(\xb5/\xfd": "a zstd archive; unpack it first", b"<": "a web page; the download went wrong",
          b"version https://git-lfs": "a git-lfs pointer; run git lfs pull where it came from"}


class Member(NamedTuple):
    """One file of a source."""

    name: str  # relative, with forward slashes
    size: int | None  # bytes; None for a single gzip file
    file: ByteFile  # its bytes; open only until the next member is asked for


@dataclass
class Source:
    """What `prepare` was pointed at; `names` and `read` make it one of the layouts' `Files`."""

    path: Path
    without: Collection[Path] = ()  # folders under it that are none of it
    sizes: dict[str, int | None] = field(default_factory=dict)
    notes: dict[str, bytes] = field(default_factory=dict)
    links: int = 0  # passed over

    @classmethod
    def open(cls, path: Path, without: Collection[Path] = ()) -> Source:
        """List all files of `path`, once. Raises UserError: missing, no archive, damaged, too large, or unsafe names."""
        if not path.exists():
            raise UserError(f"--source {path} does not exist; name the archive you downloaded, or the folder it is in")
        source, announced, kept = cls(path, [folder.resolve() for folder in without]), 0, 0
        for member in tqdm(source.members(), desc=f"listing {path.name}", unit="file", disable=not shows_bars()):
            if member.name in source.sizes:
                raise UserError(f"{path}: {member.name} is there twice; name one archive or folder at a time")
            source.sizes[member.name] = member.size
            announced += member.size or 0
            if announced > MAX_BYTES or len(source.sizes) > MAX_FILES:
                raise UserError(f"{path} announces {announced / 2**30:,.0f} GiB in {len(source.sizes):,} files or more, allowed: "
                                f"{MAX_BYTES / 2**30:,.0f} GiB and {MAX_FILES:,} files; get it from its official source")
            if _is_note(member) and kept + (member.size or 0) <= MAX_KEPT:
                with damage_told(path):
                    source.notes[member.name] = member.file.read(MAX_NOTE)
                kept += len(source.notes[member.name])
        if source.links:
            log.warning("%s: %d links were passed over; only real files are taken", path, source.links)
        return source

    def names(self) -> list[str]:
        return list(self.sizes)

    def read(self, name: str) -> bytes:
        """The bytes of a small file (annotations and lists). Raises UserError: it is not small."""
        if name in self.notes:
            return self.notes[name]
        for member in self.members({name}):
            with damage_told(self.path):
                data = member.file.read(MAX_NOTE + 1)
            if len(data) > MAX_NOTE:
                raise UserError(f"{self.path}: {name} takes more than {MAX_NOTE / 2**20:.0f} MiB, too much for a list of images; is it "
                                "the right source?")
            return data
        raise UserError(f"{self.path}: {name} is missing")

    def measure(self, names: Collection[str]) -> None:
        """Find the sizes of those of `names` that do not say theirs, by reading them. Raises UserError: one is too large."""
        unknown = {name for name in names if self.sizes[name] is None}
        if not unknown:
            return
        for member in self.members(unknown):
            size = 0
            with damage_told(self.path):
                while block := member.file.read(BLOCK):
                    size += len(block)
                    if size > MAX_SINGLE_GZ:
                        raise UserError(f"{self.path}: {member.name} is larger than {MAX_SINGLE_GZ / 2**30:.0f} GiB when unpacked, the "
                                        "limit for a single .gz file; get it from its official source")
            self.sizes[member.name] = size

    def members(self, wanted: Collection[str] | None = None) -> Iterator[Member]:
        """All files, or those of the names `wanted`, in the order in which they lie in the source."""
        self.links = 0
        if not self.path.is_dir():
            yield from self._container(self.path, "", wanted)
            return
        for folder, inner, files in os.walk(self.path, onerror=_folder_told):  # does not follow links to folders
            inner[:] = [name for name in sorted(inner) if not (self.without and (Path(folder) / name).resolve() in self.without)]
            for file in sorted(files):
                path = Path(folder) / file
                inside = path.relative_to(self.path).as_posix()
                if path.is_symlink() or not path.is_file():
                    self.links += 1
                elif path.suffix.lower() not in EXTENSIONS and _kind(path) is not None:
                    yield from self._container(path, inside.rpartition("/")[0], wanted)
                elif wanted is None or inside in wanted:
                    with damage_told(path), open(path, "rb") as handle:
                        yield Member(inside, path.stat().st_size, handle)

    def _container(self, path: Path, prefix: str, wanted: Collection[str] | None) -> Iterator[Member]:
        """The files in one archive, named as if it had been unpacked beside itself."""
        kind = _kind(path)
        if kind is None:
            raise UserError(f"{path} is no archive that can be read: it is {_what_else(path)}. Allowed: zip, tar, tar.gz, tgz, tar.bz2, "
                            "tar.xz, gz, or a folder")
        with damage_told(path):
            for name, size, file in {"tar": self._tar, "zip": self._zip, "gz": self._gz}[kind](path, prefix, wanted):
                yield Member(name, size, file)

    def _tar(self, path: Path, prefix: str, wanted: Collection[str] | None) -> Iterator[tuple[str, int, ByteFile]]:
        with tarfile.open(path, "r:*", tarinfo=_TarMember) as archive:
            for item in archive:
                archive.members = []  # else all of them are kept
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
        name = _safe_name(path, prefix, path.stem if path.suffix.lower() == ".gz" else path.name)
        if wanted is None or name in wanted:
            with gzip.open(path, "rb") as file:
                yield name, None, file


class _TarMember(tarfile.TarInfo):
    """A member of a tar file; one whose header wants much memory is refused before it is read."""

    HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:  # the method that tarfile names for subclasses
        if self.type in self.HEADERS and self.size > MAX_TAR_HEADER:
            raise UserError(f"archive {archive.name} has a header of {self.size:,} bytes, allowed: {MAX_TAR_HEADER:,}; get it from its "
                            "official source")
        return super()._proc_member(archive)  # type: ignore[misc]


@contextlib.contextmanager
def damage_told(path: Path) -> Iterator[None]:
    """Turn what the system and the archive modules raise while `path` is read into one sentence."""
    try:
        yield
    except DAMAGED as error:
        raise UserError(f"archive {path} is damaged, incomplete or encrypted ({str(error)[:200]}); download it again") from None
    except OSError as error:
        if error.errno is None:  # bz2 says so of data that is not its own
            raise UserError(f"archive {path} is damaged ({error}); download it again") from None
        raise UserError(f"{path} cannot be read ({error.strerror}); mend that, or name another --source") from None


def _folder_told(error: OSError) -> None:
    raise UserError(f"folder {error.filename} cannot be read ({error.strerror}); mend that, or name another --source")


def _is_note(member: Member) -> bool:
    name = PurePosixPath(member.name).name
    return (name in NOTES or name.endswith(LISTS) or is_cars_test(name)) and member.size is not None and member.size <= MAX_NOTE


def _first_bytes(path: Path) -> bytes:
    """As many as the first header of a tar file has."""
    with damage_told(path), open(path, "rb") as file:
        return file.read(tarfile.BLOCKSIZE)


def _kind(path: Path) -> str | None:
    """"tar", "zip" or "gz" (one compressed file), by its first bytes; None for anything else.

    A name that promises an archive is believed: reading it then says what is wrong with it.
    """
    if not path.is_file():
        return None
    start, name = _first_bytes(path), path.name.lower()
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")) or start[257:262] == b"ustar":
        with contextlib.suppress(*DAMAGED, OSError), tarfile.open(path, tarinfo=_TarMember) as archive:
            if archive.next() is not None:  # nothing but zeros would pass as an empty one
                return "tar"
        return "gz" if start.startswith(b"\x1f\x8b") and not name.endswith((".tar.gz", ".tgz")) else "tar"
    if start.lstrip().startswith(tuple(OTHERS)):
        return None
    if name.endswith((".tar", ".tgz", ".tar.gz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz")):
        return "tar"
    return "zip" if name.endswith(".zip") else "gz" if name.endswith(".gz") else None


def _what_else(path: Path) -> str:
    """What is in a file that is no archive."""
    if not path.is_file():
        return "a pipe or a device"
    start = _first_bytes(path)
    return next((what for magic, what in OTHERS.items() if start.lstrip().startswith(magic)), "something else" if start else "empty")


def _safe_name(archive: Path, prefix: str, name: str) -> str:
    """The member's name under the source, or an error if unpacking it would leave the target."""
    path = PurePosixPath(name.replace("\\", "/"))
    unsafe = not name or path.is_absolute() or ".." in path.parts or "\0" in name or (path.parts and ":" in path.parts[0])
    if unsafe or len(name) > MAX_NAME:
        raise UserError(f"archive {archive} holds the unsafe path {name[:100]!r}; nothing of it was unpacked; get it from its official "
                        "source")
    return str(PurePosixPath(prefix) / path)
