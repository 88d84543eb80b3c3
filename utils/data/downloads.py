"""Downloads: what is said before one begins, and whether what arrived is what its source published."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from utils.data.archives import BLOCK
from utils.data.cards import Archive
from utils.data.registry import registered
from utils.errors import UserError, first_line
from utils.terminal import shows_bars

log = logging.getLogger("slca.data")

GB = 10**9
FAR_SMALLER = 0.1  # of the published size
BOTH = 2  # archives, and what is unpacked from them


def check_sums(source: Path, archives: Sequence[Archive]) -> None:
    """Compare the md5 of every archive of `source` (a file, or a folder of files) that has a published one.

    Raises:
        UserError: another one. A file of the same name that is far smaller is a sample or a mirror's own: that is only told.
    """
    for archive in archives:
        name = Path(archive.file).name
        files = [source] if source.is_file() and source.name == name else [source / archive.file, source / name] if source.is_dir() else []
        file = next((path for path in files if path.is_file()), None)
        if not archive.md5 or file is None:
            continue
        found = _md5(file)
        if found != archive.md5 and file.stat().st_size < FAR_SMALLER * GB * (archive.gigabytes or 0):
            log.warning("%s is not the file that its source published (md5 %s, expected %s), and far smaller", file, found, archive.md5)
            continue
        if found != archive.md5:
            raise UserError(f"{file} is not the file that its source published: md5 {found}, expected {archive.md5}; download it again (or "
                            "rename it, if it is meant to be another one)")
        log.info("%s: md5 %s, as published", file, found)


def download(name: str, root: Path) -> Path:
    """Download the archives of the data set `name` into <root>/downloads/<name>/, and say before what, how large and from where.

    An archive that is there with its published md5 is not downloaded again.

    Returns: the folder, for `prepare`.

    Raises:
        UserError: a browser or an account is needed, the disk is too small, or the download fails.
    """
    from torchvision.datasets.utils import download_url

    entry, folder = registered(name), Path(root) / "downloads" / name
    card, total = entry.card, entry.card.size
    by_hand = [archive.file for archive in card.archives if not archive.url]
    if not card.archives or by_hand:
        raise UserError(f"prepare: {name} cannot be downloaded by this program{f' ({by_hand[0]})' if by_hand else ''}; get it from "
                        f"{entry.info.source}, then name it with --source (docs/datasets.md has its size and licence)")
    log.info("%s: downloading %s (%s) to %s/; licence: %s", name, total, ", ".join(f"{a.file} from {a.url}" for a in card.archives), folder,
             card.licence)
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = BOTH * GB * sum(archive.gigabytes or 0 for archive in card.archives), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"{folder}: about {needed / GB:.1f} GB are needed for the archives and what is in them, {free / GB:.1f} GB are "
                        "free; make room or name another --root")
    for archive in card.archives:
        place = (folder / archive.file).parent
        try:
            download_url(archive.url, str(place), Path(archive.file).name, archive.md5 or None)
        except (OSError, RuntimeError) as error:
            raise UserError(f"{archive.url} cannot be downloaded ({first_line(error)}); try again, or place it in {place}/ and prepare "
                            f"with --source {folder}") from None
    return folder


def _md5(file: Path) -> str:
    """Raises UserError: the file cannot be read."""
    digest = hashlib.md5(usedforsecurity=False)  # what the sources publish
    try:
        with open(file, "rb") as data, tqdm(total=file.stat().st_size, desc=f"checking {file.name}", unit="B", unit_scale=True,
                                            disable=not shows_bars()) as bar:
            while block := data.read(BLOCK):
                digest.update(block)
                bar.update(len(block))
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); mend that, or name another --source") from None
    return digest.hexdigest()
