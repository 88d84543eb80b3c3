"""The small files that come with benchmarks: tables of numbers, MATLAB annotations, split files. Each mistake is one sentence."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from utils.errors import UserError


def plain_lines(file: str, data: bytes) -> list[str]:
    """The lines of a text file that are not empty, stripped. Raises UserError."""
    try:
        return [line.strip() for line in data.decode("utf-8-sig").split("\n") if line.strip()]
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8 text; get the file anew from its source") from None


def id_table(file: str, lines: Sequence[str]) -> dict[str, str]:
    """Lines "id value" as a table. Raises UserError: a line that is no pair, or an id that comes twice."""
    table: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        parts = line.split(maxsplit=1)
        if len(parts) < 2:
            raise UserError(f"{file}, line {number}: got {line!r}, allowed: a number and a value with a space between them")
        if table.setdefault(parts[0], parts[1]) != parts[1]:
            raise UserError(f"{file}, line {number}: the number {parts[0]} comes twice, with {table[parts[0]]!r} and {parts[1]!r}")
    return table


def split_parts(file: str, data: bytes) -> dict[str, list[str]]:
    """{"train": paths, "test": paths} of a JSON file; no path is in both or twice in one. Raises UserError."""
    try:
        split = json.loads(data)
    except (ValueError, RecursionError):
        split = None
    parts = [split.get(part) for part in ("train", "test")] if isinstance(split, dict) else []
    if not parts or not all(isinstance(paths, list) and all(isinstance(path, str) for path in paths) for paths in parts):
        raise UserError(f"{file} is no split file, allowed: {{\"train\": [paths], \"test\": [paths]}}; remove it to have it made")
    train, test = parts
    both = set(train) & set(test)
    if both:
        raise UserError(f"{file}: {min(both)} is in train and in test; each image belongs to one")
    twice = [path for path, count in Counter(train + test).items() if count > 1]
    if twice:
        raise UserError(f"{file}: {twice[0]} is listed twice; list each image once")
    return {"train": train, "test": test}


def cars_annotations(file: str, data: bytes, fields: Sequence[str]) -> tuple[list[tuple[str, ...]], list[str]]:
    """The `fields` of every row of "annotations" as text (none asked for: no rows), and "class_names" if the file has them.

    Raises:
        UserError: no MATLAB file, or one without these.
    """
    from scipy.io import loadmat

    try:
        content: dict[str, Any] = loadmat(io.BytesIO(data), squeeze_me=True)
    except Exception as error:  # scipy raises many kinds for a damaged file
        raise UserError(f"{file} cannot be read as a MATLAB file ({error})") from None
    classes = [str(name) for name in np.atleast_1d(content.get("class_names", []))]
    if not fields:
        if not classes:
            raise UserError(f"{file}: {_lacks('class_names', content)}")
        return [], classes
    rows = np.atleast_1d(content["annotations"]) if "annotations" in content else None
    if rows is None:
        raise UserError(f"{file}: {_lacks('annotations', content)}")
    missing = [field for field in fields if field not in (rows.dtype.names or ())]
    if missing:
        raise UserError(f"{file}: the annotations have no {missing[0]!r}, got {', '.join(rows.dtype.names or ()) or 'no fields'}; get the "
                        "file anew, with labels (see docs/datasets.md)")
    texts = [tuple(str(np.atleast_1d(row[field]).flat[0]) if np.size(row[field]) == 1 else "" for field in fields) for row in rows]
    odd = next((row for row in texts for field, value in zip(fields, row, strict=True)
                if field in ("class", "test") and not value.isdecimal()), None)
    if odd:
        raise UserError(f"{file}: got the row {odd}, allowed: whole numbers as {' and '.join(f for f in fields if f in ('class', 'test'))}")
    return texts, classes


def _lacks(key: str, content: dict[str, Any]) -> str:
    found = [name for name in content if not name.startswith("__")]
    return f"{key!r} is missing, got {', '.join(found) or 'nothing'}; get the file anew from its source (see docs/datasets.md)"
