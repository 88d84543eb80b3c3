"""`python main.py prepare NAME --source ARCHIVE_OR_FOLDER | --download [--root DIR]`: a benchmark -> the folder that a run reads.

Benchmarks with class labels end up as <root>/<folder>/{train,val}/<class>/<image>, which the authors' release reads too;
sets with domains as <root>/<folder>/<domain>/{train,val}/<class>/<image>; DomainNet keeps its own layout. Files are copied
into <folder>.partial/<folder>, each under a temporary name until it is whole; the folder moves to its place when all are
there and load as the data set they should be. An interrupted run goes on where it stopped, nobody sees half a set, and two
runs at once keep out of each other's way.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout
from tqdm import tqdm

from utils.data.archives import BLOCK, ByteFile, Source, damage_told
from utils.data.cards import wrong_classes
from utils.data.downloads import check_sums
from utils.data.entries import Entry
from utils.data.five_datasets import CIFAR_FILES, GREY_FILES, five_targets
from utils.data.official import domainnet_entries, imagenet_r_entries, write_split
from utils.data.places import home_expanded
from utils.data.registry import REGISTRY, Registered, load_dataset, registered
from utils.data.types import DatasetInfo
from utils.errors import UserError, first_line
from utils.terminal import shows_bars

log = logging.getLogger("slca.data")

SPARE = 2**28  # bytes that must stay free on the disk
LOCK_NAME, PART_NAME = ".lock", ".part"  # in the folder .partial; beside a file while it is copied
TORCHVISION_FILES = {  # what torchvision looks for, under <root>/<folder>
    "cifar-10-batches-py": CIFAR_FILES,
    "cifar-100-python": ("train", "test", "meta"),
    "FashionMNIST": tuple(f"raw/{file}" for file in GREY_FILES),
}
TORCHVISION_CLASSES = {"cifar-10-batches-py": "CIFAR10", "cifar-100-python": "CIFAR100", "FashionMNIST": "FashionMNIST"}


@dataclass
class Arrangement:
    """Which file of the source goes where."""

    targets: dict[str, str]  # name in the source -> path under the target folder
    entries: list[Entry] = field(default_factory=list)  # what the targets are, to be counted


def prepare(name: str, source: str | Path, root: str | Path = "data") -> Path:
    """Arrange the benchmark `name` under `root`. Returns its folder; if it is already there, it is only checked.

    Raises:
        UserError: an unknown name, a source that is missing, damaged, unsafe, too large, incomplete or of another data
            set, a full disk, a link in the way, or another `prepare` of the same data set that is going on.
    """
    entry, root = registered(name), Path(root)
    info = entry.info
    if not info.folder:
        raise UserError(f"prepare: {name} needs no preparation ({info.source})")
    target, partial = root / info.folder, root / f"{info.folder}.partial"
    if _is_there(info, target, root):
        return target
    check_sums(home_expanded(source), entry.card.archives)
    files = Source.open(home_expanded(source), without=[partial])
    arrangement = _arrange(entry, files)
    _check_counts(entry, arrangement.entries)
    files.measure(arrangement.targets)
    with _disk_told(root), _alone_in(partial):
        if _is_there(info, target, root):  # another process was faster
            return target
        staged = partial / info.folder
        _copy(files, arrangement.targets, staged, info.name)
        if entry.entries is imagenet_r_entries:
            write_split(staged, [e._replace(path=arrangement.targets[e.path]) for e in arrangement.entries])
        _check_staged(info, files, partial)
        os.replace(staged, target)
    return target


def preparable_sets() -> list[str]:
    """The data sets that `prepare` knows."""
    return [name for name, entry in REGISTRY.items() if entry.info.folder]


def _is_there(info: DatasetInfo, target: Path, root: Path) -> bool:
    """Load what is in `target` and say what it is. Raises UserError if something else is in the way."""
    if not os.path.lexists(target):
        return False
    try:
        _load(info, root)
    except UserError as error:
        raise UserError(f"{target}/ exists but is not complete ({error}); move it away and prepare again") from None
    return True


def _check_staged(info: DatasetInfo, files: Source, partial: Path) -> None:
    """Load what was copied before it takes its place; what does not load is deleted. Raises UserError."""
    try:
        _load(info, partial)
        shutil.rmtree(partial / "cache", ignore_errors=True)  # a list of files that are about to move
    except UserError as error:
        shutil.rmtree(partial / info.folder)
        raise UserError(f"{files.path} is not {info.name} as it should be ({error}); nothing of it is kept, is it the right "
                        "source?") from None


def _load(info: DatasetInfo, root: Path) -> None:
    """Load the data set under `root` and log what it holds; nothing is downloaded. Raises UserError."""
    if info.folder in TORCHVISION_FILES:
        _check_torchvision(info, root)
    train, test, names = load_dataset(info.name, str(root))
    log.info("%s: %s/ holds %d training and %d test images of %d classes", info.name, root / info.folder, len(train), len(test), len(names))


def _check_torchvision(info: DatasetInfo, root: Path) -> None:
    """Whether torchvision takes the files as they are; for those that it refuses `load_dataset` would ask the network."""
    from torchvision import datasets

    kind = getattr(datasets, TORCHVISION_CLASSES[info.folder])
    try:
        for train in (True, False):
            kind(str(root), train=train, download=False)
    except Exception as error:  # many kinds: of md5 sums, of headers, of lengths
        raise UserError(f"torchvision does not take the files under {root / info.folder}/: {first_line(error)}") from None


# What goes where ---------------------------------------------------------------------------------------------

def _arrange(entry: Registered, files: Source) -> Arrangement:
    info = entry.info
    if info.folder in TORCHVISION_FILES:
        return _arrange_torchvision(info, files)
    if info.name == "five_datasets":
        return Arrangement(five_targets(files.names()))
    if info.domains and entry.entries is None:
        entries = domainnet_entries(files, info.domains)
        lists = {name: name.rpartition("/")[2] for name in files.names() if name.endswith(("_train.txt", "_test.txt"))}
        return Arrangement({e.path: "/".join(PurePosixPath(e.path).parts[-3:]) for e in entries} | lists, entries)
    assert entry.entries is not None, f"{info.name} has a folder but no reader of its layout"
    entries = entry.entries(files)
    targets = {e.path: f"{_plain(e.domain) + '/' if e.domain else ''}{'val' if e.test else 'train'}/{_plain(e.label)}/"
                       f"{_plain(PurePosixPath(e.path).name)}" for e in entries}
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


def _check_counts(entry: Registered, entries: list[Entry]) -> None:
    """Images per split and per class, before anything is copied. Raises UserError."""
    info = entry.info
    if info.folder in TORCHVISION_FILES or info.name == "five_datasets":
        return  # the files hold many images each; they are checked when they are loaded
    counts = {test: Counter(e.label for e in entries if e.test == test) for test in (False, True)}
    labels = set(counts[False]) | set(counts[True])
    if len(labels) != info.num_classes:
        raise UserError(f"{info.name}: the source has {len(labels)} classes, expected {info.num_classes}; is it complete, and the "
                        "right one?")
    train, test = counts[False].total(), counts[True].total()
    found = [split for split in entry.splits if split.counts(train, test) and (
        split.train is not None or len(entry.splits) == 1 or (split.first_class and min(labels).startswith(split.first_class)))]
    if not found and entry.splits and not entry.splits[0].sure:
        log.warning("%s: the source has %d training and %d test images; tables of papers name %s and %s, which no public code that was "
                    "read confirms", info.name, train, test, info.train_count, info.test_count)
    elif not found:
        _refuse_counts(info, train, test)
    for is_test, word in ((False, "training"), (True, "test")):
        empty = sorted(labels - set(counts[is_test]))
        if empty:
            raise UserError(f"{info.name}: class {empty[0]!r} has no {word} image in the source; is it complete?")
    wrong = wrong_classes(found[0], entries) if found and len(found) == 1 else []
    if wrong:
        more = f" (and {len(wrong) - 1} more classes)" if len(wrong) > 1 else ""
        raise UserError(f"{info.name}: {wrong[0]}{more}; is the source complete?")
    log.info("%s: %d training and %d test images, %d to %d per class", info.name, train, test,
             min((counts[False] + counts[True]).values()), max((counts[False] + counts[True]).values()))


def _refuse_counts(info: DatasetInfo, train: int, test: int) -> None:
    """Raises UserError if the numbers are not those of the published split."""
    for word, expected, got in (("training", info.train_count, train), ("test", info.test_count, test)):
        if expected is not None and got != expected:
            raise UserError(f"{info.name}: the source has {got} {word} images, expected {expected}; is it complete, and the right version?")


# Copying -----------------------------------------------------------------------------------------------------

@contextmanager
def _disk_told(root: Path) -> Iterator[None]:
    """Inside, what the system says about the disk of `root` is one sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or root} cannot be written ({error.strerror or error}); make room or name another "
                        "--root") from None


@contextmanager
def _alone_in(partial: Path) -> Iterator[None]:
    """Make the folder `partial`, keep other processes out of it, and remove it if nothing is left in it."""
    lock = FileLock(partial / LOCK_NAME)
    while not lock.is_locked:
        partial.mkdir(parents=True, exist_ok=True)
        if partial.is_symlink():
            raise UserError(f"{partial} is a link, and prepare writes through none; remove it and prepare again")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"{partial}/ is in use by another prepare that is still going; wait for it, or stop it") from None
        except FileNotFoundError:  # another process was done in this moment, and removed the folder
            continue
    try:
        yield
    finally:
        (partial / LOCK_NAME).unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):
            partial.rmdir()


def _copy(files: Source, targets: dict[str, str], folder: Path, name: str) -> None:
    """Copy every file to its place under `folder`; what is already there with its full size is passed over."""
    _remove_strays(folder, set(targets.values()))
    folder.mkdir(exist_ok=True)
    todo = {source for source, target in targets.items() if not _whole(folder / target, files.sizes[source])}
    needed = sum(files.sizes[source] or 0 for source in todo)
    free = shutil.disk_usage(folder).free
    if needed + SPARE > free:
        raise UserError(f"{folder}: {needed / 2**30:.1f} GiB are needed and {SPARE / 2**30:.2f} GiB must stay free, "
                        f"{free / 2**30:.1f} GiB are free; make room or name another --root")
    made: set[Path] = set()
    with tqdm(total=len(targets), initial=len(targets) - len(todo), desc=f"preparing {name}", unit="file",
              disable=not shows_bars()) as bar:
        for member in files.members(todo):
            size = files.sizes[member.name]
            assert size is not None, "measured before"
            target = folder / targets[member.name]
            if target.parent not in made:
                _make_inside(folder, target.parent)
                made.add(target.parent)
            _write_whole(_Announced(member.file, size, files.path), target)
            todo.remove(member.name)
            bar.update()
    if todo:
        raise UserError(f"{files.path}: {min(todo)} is gone; did the source change while it was read?")


def _remove_strays(folder: Path, wanted: set[str]) -> None:
    """Delete what an attempt with another source left beside and under `folder`, and all links; they are not followed."""
    keep = {f"{folder.name}/{target}" for target in wanted} | {LOCK_NAME}
    for place, inner, names in os.walk(folder.parent, topdown=False):
        for path in (Path(place) / name for name in [*names, *inner]):
            if path.is_symlink() or (not path.is_dir() and path.relative_to(folder.parent).as_posix() not in keep):
                path.unlink()
            elif path.is_dir():
                with suppress(OSError):  # only an empty one is removed
                    path.rmdir()


def _whole(target: Path, size: int | None) -> bool:
    return size is not None and target.is_file() and target.stat().st_size == size


def _make_inside(folder: Path, parent: Path) -> None:
    """Make the folder `parent` under `folder`. Raises UserError if links lead it out of there."""
    if not parent.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{parent} leaves {folder}: a link was put there; remove {folder.parent} and prepare again")
    parent.mkdir(parents=True, exist_ok=True)


class _Announced:
    """A file of the source that must have as many bytes as were announced: the disk was measured for those."""

    def __init__(self, file: ByteFile, size: int, source: Path) -> None:
        self.file, self.left, self.source = file, size, source

    def read(self, count: int) -> bytes:
        with damage_told(self.source):
            block = self.file.read(count)
        self.left -= len(block)
        if self.left < 0 or (not block and self.left):
            raise UserError(f"{self.source} is damaged: a file in it is {'longer' if self.left < 0 else 'shorter'} than announced; "
                            "download it again")
        return block


def _write_whole(file: _Announced, target: Path) -> None:
    """Copy `file` to a temporary name beside `target`, then give it the name. No link is followed. Raises OSError."""
    part = target.with_name(PART_NAME)
    part.unlink(missing_ok=True)
    try:
        with open(part, "xb") as out:  # x: a link in its place is an error
            while block := file.read(BLOCK):
                out.write(block)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
