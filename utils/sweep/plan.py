"""The runs of a sweep and their names: a point is a config with the values that are tried, a run is a point with its seeds."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import storage_errors_told, write_atomic
from utils.json_files import json_text, read_json

LONGEST_NAME, LONGEST_VALUE = 120, 20  # characters
DIGEST_DIGITS = 8
DEFAULT_OUT = Path("logs/sweeps")


@dataclass(frozen=True)
class Point:
    """One row of the sweep's table."""

    name: str                       # unique within the sweep, a plain file name
    file: Path                      # the config that it starts from
    values: dict[str, Any]          # the settings that are tried


@dataclass(frozen=True)
class Run:
    """What one job does: a point with one seed, or with several of them one after another."""

    name: str
    config: dict[str, Any]  # what its JSON file holds


def grid_points(files: Sequence[Path], combinations: Sequence[Mapping[str, Any]]) -> list[Point]:
    """Every config with every combination of values."""
    points: list[Point] = []
    for file in files:
        for values in combinations:
            name = plain("+".join([file.stem, *(f"{key}-{_short(value)}" for key, value in values.items())]))
            points.append(Point(free_name(name, {point.name for point in points}), file, dict(values)))
    return points


def seed_runs(point: Point, config: Mapping[str, Any], seeds: Sequence[int]) -> list[Run]:
    """A run for each seed, so that all of them may go side by side."""
    return [Run(f"{point.name}+seed-{seed}", {**config, "seed": seed}) for seed in seeds]


def plain(name: str) -> str:
    """`name` as a file name that needs no quotes in a shell."""
    return re.sub(r"[^\w.+-]", "_", name).lstrip(".")[:LONGEST_NAME] or "run"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return text if len(text) <= LONGEST_VALUE else hashlib.sha256(text.encode()).hexdigest()[:DIGEST_DIGITS]


def free_name(name: str, taken: set[str]) -> str:
    """`name`, or the first of name-2, name-3, ... that is not taken."""
    return next(free for free in (name, *(f"{name}-{n}" for n in range(2, len(taken) + 3))) if free not in taken)


def request_of(files: Sequence[Path], assignments: Sequence[str], seeds: Sequence[int] | None, search: bool) -> dict[str, Any]:
    """What makes a sweep this one and no other: where it runs, and how many trials are searched, may change when it goes on.

    Raises:
        UserError: a config cannot be read.
    """
    return {"search": search, "set": sorted(assignments), "seeds": None if seeds is None else list(seeds),
            "configs": [{"file": file.name, "content": read_json(file)} for file in files]}


def default_folder(request: Mapping[str, Any]) -> Path:
    """logs/sweeps/<first config>[+<others>]-<digest>: the same command finds its sweep again, another one never does."""
    first, others = Path(request["configs"][0]["file"]).stem, len(request["configs"]) - 1
    return DEFAULT_OUT / f"{plain(first)}{f'+{others}' if others else ''}-{digest_of(request)}"


def digest_of(request: Any) -> str:
    """The first digits of the SHA-256 of a request's JSON, for the name of its folder."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:DIGEST_DIGITS]


def remember_request(folder: Path, request: Mapping[str, Any]) -> None:
    """Write sweep.json, or check that the one in `folder` is of the same request.

    Raises:
        UserError: another sweep is there.
    """
    file = folder / "sweep.json"
    if file.exists():
        before = read_json(file)
        changed = sorted(key for key in request if before.get(key) != request[key])
        if changed:
            raise UserError(f"--out: {folder} holds another sweep ({', '.join(changed)} differ); name another folder, or leave --out away: "
                            "every sweep then has a folder of its own")
        return
    with storage_errors_told(file):
        write_atomic(file, json_text(dict(request)))
