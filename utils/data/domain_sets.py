"""The official layouts of sets with domains: the same classes in one domain after another."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from pathlib import PurePosixPath

from utils.data.entries import Entry, Files, split_per_class
from utils.data.walk import is_image
from utils.errors import UserError

OFFICE_HOME = ("Art", "Clipart", "Product", "Real_World")
OFFICE_HOME_TEST = 0.3  # of each class of each domain: the field's 70/30; which images is ours
CORE50 = ("s11", "s4", "s2", "s9", "s1", "s6", "s5", "s8")  # sessions to train on, in the order of the benchmark's first run
CORE50_TEST = ("s3", "s7", "s10")
CDDB_HARD = ("gaugan", "biggan", "wild", "whichfaceisreal", "san")
SESSION, OBJECT = re.compile(r"s[0-9]{1,2}"), re.compile(r"o[0-9]{1,2}")


def office_home_entries(files: Files) -> list[Entry]:
    """Office-Home: <domain>/<class>/*, "Real World" with a space; 70/30 of each class and domain, by one permutation each."""
    spelled = {domain.lower().replace("_", ""): domain for domain in OFFICE_HOME}
    by_domain: dict[str, list[str]] = {}
    for name in files.names():
        parts = PurePosixPath(name).parts
        domain = spelled.get(parts[-3].lower().replace(" ", "").replace("_", "")) if len(parts) >= 3 and is_image(name) else None
        if domain:
            by_domain.setdefault(domain, []).append(name)
    _need(by_domain, OFFICE_HOME, "Office-Home", "<domain>/<class>/<image>")
    return [entry._replace(domain=domain) for domain in OFFICE_HOME for entry in split_per_class(by_domain[domain], OFFICE_HOME_TEST)]


def split_each_domain(paths: Sequence[str]) -> list[Entry]:
    """The same division, of "domain/class/file"."""
    by_domain: dict[str, list[str]] = {}
    for path in paths:
        by_domain.setdefault(path.partition("/")[0], []).append(path)
    return [entry for own in by_domain.values() for entry in split_per_class(own, OFFICE_HOME_TEST)]


def core50_entries(files: Files) -> list[Entry]:
    """CORe50: s<session>/o<object>/*; sessions 3, 7 and 10 test, the others are the domains.

    The test sessions belong to no domain. Each of their images counts with one of the eight, in turn, so that the accuracy on
    all domains, which is measured after each task, is the benchmark's.
    """
    entries, tests = [], 0
    for name in sorted(files.names()):
        parts = PurePosixPath(name).parts
        if len(parts) < 3 or not (SESSION.fullmatch(parts[-3]) and OBJECT.fullmatch(parts[-2]) and is_image(name)):
            continue
        label = f"o{int(parts[-2][1:]):02d}"
        if parts[-3] in CORE50_TEST:
            entries.append(Entry(name, label, True, CORE50[tests % len(CORE50)]))
            tests += 1
        elif parts[-3] in CORE50:
            entries.append(Entry(name, label, False, parts[-3]))
    _need({entry.domain for entry in entries if not entry.test}, CORE50, "CORe50", "s<session>/o<object>/<image>")
    return entries


def cddb_hard_entries(files: Files) -> list[Entry]:
    """CDDB, its hard stream: <generator>/{train,val}/{0_real,1_fake}/*; the archive's other generators are left out."""
    entries = []
    for name in files.names():
        parts = PurePosixPath(name).parts
        if len(parts) >= 4 and parts[-4] in CDDB_HARD and parts[-3] in ("train", "val", "test") and is_image(name):
            entries.append(Entry(name, parts[-2], parts[-3] != "train", parts[-4]))
    _need({entry.domain for entry in entries}, CDDB_HARD, "CDDB-Hard", "<generator>/{train,val}/{0_real,1_fake}/<image>")
    return entries


def _need(found: Container[str], domains: tuple[str, ...], what: str, layout: str) -> None:
    lacking = [domain for domain in domains if domain not in found]
    if lacking:
        raise UserError(f"{what}: no images of {', '.join(lacking)} found; expected {layout}")
