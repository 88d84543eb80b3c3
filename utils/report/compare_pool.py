"""Runs of one experiment with several torch seeds as one row: seeds are then pairs of a class order and a torch seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from utils.report.comparable import NOT_SHOWN, images_words, weights_words
from utils.report.compare_tables import Entry

MAY_DIFFER = NOT_SHOWN - {"model_name"} | {"torch_seed", "seed"}


def pooled(entries: Sequence[Entry]) -> list[Entry]:
    """Entries whose runs are alike but for `torch_seed` and `seed` joined; each seed is marked with its run's torch seed.

    Runs with other pre-trained weights or other images are not alike, whatever their settings say. A class order with the
    same torch seed that two of them have is counted once, the first run's.
    """
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        result = entry.result
        settings = {key: value for key, value in result.config.items() if key not in MAY_DIFFER}
        alike = [result.method, settings, weights_words(result), images_words(result, "fingerprint")]
        groups.setdefault(json.dumps(alike, sort_keys=True, default=str), []).append(entry)
    return [_joined(group) for group in groups.values()]


def _joined(group: Sequence[Entry]) -> Entry:
    seeds = {}
    for entry in group:
        torch_seed = entry.result.config.get("torch_seed")
        for seed in entry.result.seeds:
            seeds.setdefault((seed.seed, torch_seed), replace(seed, torch_seed=torch_seed))
    first = group[0]
    result = replace(first.result, seeds=list(seeds.values()), summary={})
    return replace(first, run=" + ".join(entry.run for entry in group), result=result)
