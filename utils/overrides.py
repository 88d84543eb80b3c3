"""`--set key=value`: settings from the command line that win over the file's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from utils.errors import UserError
from utils.json_files import refuse_constant


def parse_overrides(assignments: Sequence[str]) -> dict[str, Any]:
    """`["epochs=1", "seed=[1,2]"]` -> `{"epochs": 1, "seed": [1, 2]}`; what is not JSON is taken as text.

    Raises:
        UserError: an assignment has no "=", or gives a key a second time.
    """
    overrides: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not equals or not all(key.split(".")):
            raise UserError(f"--set {assignment}: expected key=value, e.g. --set epochs=1, or dataset.image_size=32 inside an object")
        try:
            overrides[key] = json.loads(text, parse_constant=refuse_constant)
        except (ValueError, RecursionError):
            overrides[key] = text
    return overrides


def with_overrides(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with the overrides put in, one after another; "dataset.image_size" is the key of that name inside "dataset".

    An object that is missing or null on the way is made.

    Raises:
        UserError: what is on the way is no object.
    """
    result = dict(values)
    for key, value in overrides.items():
        *parents, last = key.split(".")
        place = result
        for depth, parent in enumerate(parents, 1):
            inside = place.get(parent)
            if inside is not None and not isinstance(inside, Mapping):
                where = ".".join(parents[:depth])
                raise UserError(f"--set {key}: {where} is {inside!r} in the file, which has no keys; set it whole, --set '{where}={{...}}'")
            place[parent] = dict(inside or {})
            place = place[parent]
        place[last] = value
    return result
