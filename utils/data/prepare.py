"""`python main.py prepare NAME --source ARCHIVE_OR_FOLDER [--root DIR]`: a downloaded benchmark -> the folder that a run reads.

Benchmarks with class labels end up as <root>/<folder>/{train,val}/<class>/<image>, which the authors' release reads too;
DomainNet keeps its own layout. Files are copied into <folder>.partial, each under a temporary name until it is whole, and
the folder takes its name when all are there: an interrupted run goes on where it stopped, and nobody sees half a set.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from utils.data.archives import ByteFile, Source, damage_told
from utils.data.official import Entry, domainnet_entries, imagenet_r_entries, write_split
from utils.data.registry import REGISTRY, Registered, load_dataset, registered
from utils.data.types import DatasetInfo
from utils.errors import UserError
from utils.terminal import shows_bars

log = logging.getLogger("slca.data")

BLOCK = 2**20  # bytes copied at a time
SPARE = 2**28  # bytes that must stay free on the disk
TORCHVISION_FILES = {  # what torchvision looks for, under <root>/<folder>
    "cifar-10-batches-py": [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"],
    "cifar-100-python": ["train", "test", "meta"],
    "FashionMNIST": [f"raw/{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")],
}


@dataclass
class Arrangement:
    """Which file of the source goes where."""

    targets: dict[str, str]  # name in the source -> path under the target folder
    entries: list[Entry] = field(default_factory=list)  # what the targets are, to be counted


def prepare(name: str, source: str | Path, root: str | Path = "data") -> Path:
    """Arrange the benchmark `name` under `root`. Returns its folder; if it is already there, it is only checked.

    Raises:
        UserError: an unknown name, a source that is missing, damaged, unsafe or incomplete, or a full disk.
    """
    entry, root = registered(name), Path(root)
    info = entry.info
    if not info.folder:
        raise UserError(f"prepare: {name} needs no preparation ({info.source})")
    target = root / info.folder
    if _is_there(info, target, root):
        return target
    files = Source.open(Path(source).expanduser())
    arrangement = _arrange(entry, files)
    _check_counts(info, arrangement.entries)
    partial = target.with_name(target.name + ".partial")
    _copy(files, arrangement.targets, partial, info.name)
    if entry.entries is imagenet_r_entries:
        write_split(partial, [e._replace(path=arrangement.targets[e.path]) for e in arrangement.entries])
    os.replace(partial, target)
    _is_there(info, target, root)
    return target


def prepare_names() -> list[str]:
    """The data sets that `prepare` knows."""
    return [name for name, entry in REGISTRY.items() if entry.info.folder]


def _is_there(info: DatasetInfo, target: Path, root: Path) -> bool:
    """Load what is in `target` and say what it is. Raises UserError if something else is in the way."""
    if not target.exists():
        return False
    try:
        train, test, names = load_dataset(info.name, str(root))
    except UserError as error:
        raise UserError(f"{target}/ exists but is not complete ({error}); move it away and prepare again") from None
    log.info("%s: %s/ holds %d training and %d test images of %d classes", info.name, target, len(train), len(test), len(names))
    return True


# What goes where ---------------------------------------------------------------------------------------------

def _arrange(entry: Registered, files: Source) -> Arrangement:
    info = entry.info
    if info.folder in TORCHVISION_FILES:
        return _arrange_torchvision(info, files)
    if info.domains:
        entries = domainnet_entries(files, info.domains)
        lists = {name: name.rpartition("/")[2] for name in files.names() if name.endswith(("_train.txt", "_test.txt"))}
        return Arrangement({e.path: "/".join(PurePosixPath(e.path).parts[-3:]) for e in entries} | lists, entries)
    assert entry.entries is not None, f"{info.name} has a folder but no reader of its layout"
    entries = entry.entries(files)
    targets = {e.path: f"{'val' if e.test else 'train'}/{_plain(e.label)}/{_plain(PurePosixPath(e.path).name)}" for e in entries}
    twice = [target for target, count in Counter(targets.values()).items() if count > 1]
    if twice:
        raise UserError(f"{files.path}: two files would become {twice[0]}; is the source one data set only?")
    return Arrangement(targets, entries)


def _arrange_torchvision(info: DatasetInfo, files: Source) -> Arrangement:
    """The files that torchvision opens, wherever they are in the source; it checks their md5 itself."""
    targets = {}
    for wanted in TORCHVISION_FILES[info.folder]:
        tail = wanted.rpartition("/")[2]
        found = [name for name in files.names() if PurePosixPath(name).name == tail]
        if not found:
            raise UserError(f"{files.path}: {tail} is missing; expected the files of {info.source}")
        targets[found[0]] = wanted
    return Arrangement(targets)


def _plain(name: str) -> str:
    """A name that is one folder or file and nothing else, whatever the annotations say."""
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name or ":" in name[:2]:
        raise UserError(f"the annotations name {name!r}, which is no plain name of a folder or file")
    return name


def _check_counts(info: DatasetInfo, entries: list[Entry]) -> None:
    """Images per split and per class, before anything is copied. Raises UserError."""
    if not entries:
        return  # torchvision's files: checked by md5 when they are loaded
    counts = {test: Counter(e.label for e in entries if e.test == test) for test in (False, True)}
    labels = set(counts[False]) | set(counts[True])
    if len(labels) != info.num_classes:
        raise UserError(f"{info.name}: the source has {len(labels)} classes, expected {info.num_classes}; is it complete, and the "
                        "right one?")
    for test, word in ((False, "training"), (True, "test")):
        expected, got = (info.test_count if test else info.train_count), sum(counts[test].values())
        if expected is not None and got != expected:
            raise UserError(f"{info.name}: the source has {got} {word} images, expected {expected}; is it complete, and the right version?")
        empty = sorted(labels - set(counts[test]))
        if empty:
            raise UserError(f"{info.name}: class {empty[0]!r} has no {word} image in the source; is it complete?")
    log.info("%s: %d training and %d test images, %d to %d per class", info.name, counts[False].total(), counts[True].total(),
             min((counts[False] + counts[True]).values()), max((counts[False] + counts[True]).values()))


# Copying -----------------------------------------------------------------------------------------------------

def _copy(files: Source, targets: dict[str, str], folder: Path, name: str) -> None:
    """Copy every file to its place under `folder`; what is already there with its full size is passed over."""
    folder.mkdir(parents=True, exist_ok=True)
    inside = folder.resolve()
    todo = {source for source, target in targets.items() if not _whole(folder / target, files.sizes[source])}
    needed = sum(files.sizes[source] or 0 for source in todo)
    free = shutil.disk_usage(folder).free
    if needed + SPARE > free:
        raise UserError(f"{folder}: {needed / 2**30:.1f} GiB are needed, {free / 2**30:.1f} GiB are free; make room or name another --root")
    with tqdm(total=len(targets), initial=len(targets) - len(todo), desc=f"preparing {name}", unit="file",
              disable=not shows_bars()) as bar:
        for member in files.members(todo):
            target = folder / targets[member.name]
            assert target.resolve().is_relative_to(inside), f"{target} leaves {folder}"
            with damage_told(files.path):
                _write_whole(member.file, target)
            bar.update()
    wanted = {folder / target for target in targets.values()}
    for stray in [path for path in folder.rglob("*") if path.is_file() and path not in wanted]:
        stray.unlink()  # of an attempt with another source


def _whole(target: Path, size: int | None) -> bool:
    return size is not None and target.is_file() and target.stat().st_size == size


def _write_whole(file: ByteFile, target: Path) -> None:
    """Copy `file` to a temporary name beside `target`, then give it the name. Raises UserError for a full disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    try:
        with open(part, "wb") as out:
            shutil.copyfileobj(file, out, BLOCK)
        os.replace(part, target)
    except OSError as error:
        if error.errno is None:  # not the disk: a damaged archive
            raise
        raise UserError(f"{target} cannot be written ({error.strerror}); make room or name another --root") from None
    finally:
        part.unlink(missing_ok=True)
