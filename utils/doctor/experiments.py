"""What the experiments of exps/ need: which weights and which data, and which experiments need each."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import PROJECT
from utils.json_files import read_json

SHOWN = 3  # names of experiments in a line


@dataclass
class Need:
    """One thing that experiments need, as their files name it."""

    value: Any  # of `convnet_type` or `dataset`
    experiments: list[str] = field(default_factory=list)

    @property
    def words(self) -> str:
        """"for 38 experiments: slca_cifar, slca_cub, slca_cars, ..."."""
        shown = ", ".join(self.experiments[:SHOWN]) + (", ..." if len(self.experiments) > SHOWN else "")
        return f"for {len(self.experiments)} of the experiments: {shown}"


def needs(key: str, folder: Path = PROJECT / "exps") -> list[Need]:
    """The values of `convnet_type` or `dataset` in the experiments of `folder`, each once; files that are none are passed over."""
    found: dict[str, Need] = {}
    for file in sorted(folder.glob("*.json")):
        try:
            value = read_json(file).get(key)
        except UserError:
            continue
        if value is not None:
            found.setdefault(json.dumps(_place(value), sort_keys=True), Need(value)).experiments.append(file.stem)
    return list(found.values())


def _place(value: Any) -> Any:
    """What of the value says where its files are: two experiments may crop the same images differently."""
    if not isinstance(value, dict):
        return value
    return {key: value[key] for key in ("timm", "weights", "layout", "root", "train", "test") if key in value}
