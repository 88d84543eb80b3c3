"""exps/schema.json: the settings of all methods as one JSON Schema, for editors (`python main.py schema` writes it)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from models.registry import learner_class
from utils.config import Config
from utils.files import PROJECT, write_atomic
from utils.methods import catalogue

SCHEMA = PROJECT / "exps" / "schema.json"


def json_schema() -> dict[str, Any]:
    """The common settings, and each method's own with the methods that have it: "x-methods", and what each takes: "x-defaults"."""
    schema = Config.model_json_schema()
    schema["additionalProperties"] = False
    for name, method in catalogue().methods.items():
        own = learner_class(name).Settings.model_json_schema()
        schema["$defs"].update(own.get("$defs", {}))
        for key in method.keys:
            _add(schema["properties"], key, own["properties"][key], name)
    schema["properties"]["$schema"] = {"type": "string", "description": "path of this schema, for editors"}
    return schema


def write_schema(path: Path = SCHEMA) -> Path:
    return write_atomic(path, json.dumps(json_schema(), indent=2) + "\n")


def _add(properties: dict[str, Any], key: str, found: dict[str, Any], method: str) -> None:
    before = properties.get(key)
    if before is None:
        properties[key] = {**found, "x-methods": [method], "x-defaults": {method: found["default"]} if "default" in found else {}}
        return
    if "x-methods" not in before:  # a common setting, of which the method has another default
        return
    before["x-methods"].append(method)
    if "default" in found:
        before["x-defaults"][method] = found["default"]
    if before.get("default") != found.get("default"):
        before.pop("default", None)
    if found.get("description") not in before["description"].split("; or "):
        before["description"] += f"; or {found['description']}"
