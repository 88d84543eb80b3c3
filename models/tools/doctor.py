"""The part of `python main.py doctor` that needs the project's own modules: weights and data sets, what they enable, the self-test.

The self-test alone needs torch, and tells what is wrong where torch cannot be imported.
"""

from __future__ import annotations

import os
from argparse import Namespace
from typing import Any

from convs.backbone_entries import REGISTRY, WEIGHT_SUFFIXES, BackboneEntry, find_weights
from utils.data.places import home_expanded
from utils.doctor.check import Check
from utils.doctor.data_sets import data_checks
from utils.doctor.experiments import needs
from utils.doctor.files import file_words
from utils.last_resort import one_sentence

WEIGHTS, SELF_TEST = "weights", "self-test"


def project_checks(arguments: Namespace) -> list[Check]:
    """What needs the project's own modules: weights, data sets, the self-test."""
    checks = [*weight_checks(), *data_checks(home_expanded(arguments.data_root))]
    return checks if arguments.no_self_test else checks + self_test(arguments.device)


def weight_checks() -> list[Check]:
    """The weights that the experiments need: the file that would be taken with its checksum, or where to get it."""
    return [_weights(need.value, need.words) for need in needs("convnet_type")]


def _weights(value: Any, words: str) -> Check:
    entry = _entry(value)
    name = value if isinstance(value, str) else os.path.basename(str(value.get("weights") or value.get("timm")))
    file = find_weights(entry)
    if file is not None:
        told, right, facts = file_words(file)
        return Check(WEIGHTS, name, "ok" if right else "warning", f"{told}; {words}", facts)
    way = "timm downloads them at the first run" if entry.downloadable else f"put {' or '.join(entry.files)} into pretrained/"
    return Check(WEIGHTS, name, "absent", f"not in pretrained/; {way} ({entry.source or 'pretrained/README.md'}); {words}")


def _entry(value: Any) -> BackboneEntry:
    """As `convs.backbone_entries.describe`, without a look into timm."""
    if isinstance(value, str):
        name = value.removeprefix("timm/")
        return REGISTRY.get(value) or BackboneEntry(name, files=tuple(name + suffix for suffix in WEIGHT_SUFFIXES), source="timm")
    weights = value.get("weights")
    return BackboneEntry(str(value.get("timm")), files=(weights,) if weights else (), downloadable=weights is None, named=bool(weights))


def self_test(device: str) -> list[Check]:
    """One step, one alignment, one resume; each that fails says why."""
    try:
        from models.tools.self_test import SelfTest
        test = SelfTest(device)
    except Exception as error:  # torch or another library cannot be imported, whatever the reason
        return [Check(SELF_TEST, "start", "failed", one_sentence(error))]
    with test:
        return [_tried(name, part) for name, part in (("one step", test.step), ("one alignment", test.alignment),
                                                      ("one resume", test.resume))]


def _tried(name: str, part: Any) -> Check:
    try:
        return Check(SELF_TEST, name, "ok", part())
    except Exception as error:  # whatever does not work here is what the user wants to know
        return Check(SELF_TEST, name, "failed", one_sentence(error))
