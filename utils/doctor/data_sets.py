"""Which data sets are there: those that the experiments need, then the registered ones that no experiment needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils.data.places import find_place
from utils.data.registry import REGISTRY
from utils.doctor.check import Check
from utils.doctor.experiments import needs
from utils.doctor.files import file_words, folder_words

PART = "data sets"


def data_checks(data_root: Path) -> list[Check]:
    """One check per place of images."""
    needed = needs("dataset")
    found = [_check(need.value, data_root, need.words) for need in needed]
    others = set(REGISTRY) - {need.value for need in needed if isinstance(need.value, str)}
    return found + [_registered(name, data_root, "for experiments of your own") for name in REGISTRY if name in others]


def _check(value: Any, data_root: Path, words: str) -> Check:
    if isinstance(value, str):
        return _registered(value, data_root, words)
    given = value.get("root") or value.get("train")
    name = str(value.get("name", given))
    if given is None:
        return Check(PART, name, "ok", f"made in memory; {words}")
    place = find_place(given)
    if not place.exists:
        return Check(PART, name, "absent", f"{place.missing}; {words}")
    return _there(name, place.path, words)


def _registered(name: str, data_root: Path, words: str) -> Check:
    """A registered set, by its folder under `data_root`."""
    if name not in REGISTRY:
        return Check(PART, name, "absent", f"no registered data set (a plugin's?); {words}")
    info = REGISTRY[name].info
    if not info.folder:
        return Check(PART, name, "ok", f"{info.source}; {words}")
    folder = data_root / info.folder
    if folder.is_dir():
        return _there(name, folder, words)
    by_itself = "downloaded by torchvision" in info.source
    advice = "torchvision downloads it" if by_itself else f"docs/datasets.md says how to get it from {info.source}"
    return Check(PART, name, "absent", f"not in {folder}; {advice}; {words}", {"folder": str(folder)})


def _there(name: str, path: Path, words: str) -> Check:
    if path.is_dir():
        told, facts = folder_words(path)
        return Check(PART, name, "ok", f"{told}; {words}", facts)
    told, right, facts = file_words(path)
    return Check(PART, name, "ok" if right else "warning", f"{told}; {words}", facts)
