"""What makes runs incomparable, and which of their settings differ."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from utils.errors import UserError
from utils.machine.speed import arithmetic
from utils.report.compare_tables import Entry
from utils.report.describe import SIZES, backbone_words
from utils.report.results import RunResult
from utils.report.tables import printable

UNKNOWN = "not recorded"  # by an older version of the program; never a difference by itself
# Settings that say where and how a run went, not what was learned, or that the figures show anyway.
NOT_SHOWN = {"model_name", "model_postfix", "prefix", "notes", "device", "data_root", "num_workers", "cache", "feature_cache_gb",
             "keep_checkpoints", "checkpoint_minutes", "checkpoint_every", "resume", "analyze", "tensorboard", "wandb"}
SHORT_COMMIT = 12  # digits
VERSIONS = ("torch", "torchvision", "timm", "numpy")


def check_comparable(entries: Sequence[Entry]) -> list[str]:
    """Notes on what differs between the runs besides the method.

    Raises:
        UserError: the runs are on different data sets or numbers of classes, so that no figure compares.
    """
    streams = _by(entries, data_words)
    if len(streams) > 1:
        raise UserError(f"compare: these runs learned different data, so no figure compares: {_listed(streams)}. "
                        "Compare runs of one data set with the same classes, or rank methods over several with --streams.")
    splits = _by([entry for entry in entries if entry.result.split], lambda r: f"{r.dataset}, split {r.split}")
    if len(splits) > 1:
        raise UserError(f"compare: these runs learned and were tested on other images of one data set, so no figure compares: "
                        f"{_listed(splits)}. Compare runs of one split.")
    several = [entry for entry in entries if entry.result.num_tasks > 1]
    checks = {
        "splits into tasks, so average and forgetting do not compare": _by(several, split_words),
        "seeds": _by(entries, lambda r: ", ".join(str(seed.seed) for seed in r.seeds)),
        "class orders of the same seeds": _by(several, lambda r: _class_orders(r, entries)),
        "images of that data set (fingerprint)": _by(entries, lambda r: images_words(r, "fingerprint")),
        "image sizes": _by(entries, lambda r: images_words(r, "size")),
        "backbones": _by(entries, network_words),
        "pre-trained weights (SHA-256)": _by(entries, weights_words),
        "shares of the training images held out": _by(several, lambda r: _number(r, "val_fraction")),
        "transforms of the test images": _by(entries, lambda r: f"{_number(r, 'normalize')}, {_number(r, 'test_transform')}"
                                             if "normalize" in r.config else UNKNOWN),
        "epochs": _by(several, lambda r: _number(r, "epochs")),
        "batch sizes": _by(several, lambda r: _number(r, "batch_size")),
        "precisions": _by(entries, lambda r: arithmetic(r.config)),
        "versions": _by(entries, _versions),
        "machines, so times do not compare": _by(entries, _machine),
    }
    return [printable(f"Different {what}: {_listed(groups)}.") for what, groups in checks.items() if len(groups.keys() - {UNKNOWN}) > 1]


def settings_that_differ(entries: Sequence[Entry]) -> list[list[str]]:
    """Header and a row per setting or version that several runs have and not all alike; "-" where a run's method has none."""
    facts = [_facts(entry.result) for entry in entries]
    rows = []
    for key in dict.fromkeys(key for found in facts for key in found):
        values = [found.get(key) for found in facts]
        if len({value for value in values if value is not None}) > 1:
            rows.append([key, *(printable("-" if value is None else value) for value in values)])
    return [["Setting", *(entry.label for entry in entries)], *rows] if rows else []


def by_value(differ: Sequence[Sequence[str]]) -> list[list[str]]:
    """The same with a row per setting and value, and the runs that have it: what can be read of more than a few runs."""
    if not differ:
        return []
    rows = [["Setting", "Value", "Runs"]]
    for key, *values in differ[1:]:
        groups: dict[str, list[str]] = {}
        for label, value in zip(differ[0][1:], values, strict=True):
            groups.setdefault(value, []).append(label)
        rows += [[key, value, ", ".join(labels)] for value, labels in groups.items() if value != "-"]
    return rows


def _facts(result: RunResult) -> dict[str, str]:
    """Settings, versions and weights of a run by name, as text; objects by their parts ("dataset.image_size")."""
    environment = {name: result.environment.get(name) for name in ("python", *VERSIONS, "git_commit", "cpu", "gpu")}
    commit, dash, dirty = (environment["git_commit"] or "").partition("-")
    environment["git_commit"] = commit[:SHORT_COMMIT] + dash + dirty or None
    told: dict[str, Any] = {**{key: value for key, value in result.config.items() if key not in NOT_SHOWN}, **environment,
                            "weights": result.environment.get("weights"), "images": result.environment.get("images")}
    return {key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            for key, value in _flat(told).items() if value is not None}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def data_words(result: RunResult) -> str:
    protocol = f", {result.protocol}" if result.protocol else ""
    return f"{result.dataset}, {result.num_classes} classes, {result.config.get('scenario', 'class')}-incremental{protocol}"


def network_words(result: RunResult) -> str:
    """The backbone with every argument that makes it another one than its words say: patch size, heads, random weights."""
    words, spec = backbone_words(result.config), result.config.get("convnet_type")
    args = (spec.get("args") or {}) if isinstance(spec, dict) else {}
    more = [f"{name} {value}" for name, value in sorted(args.items()) if name not in SIZES]
    untrained = ["random weights"] if result.config.get("pretrained") is False and "random weights" not in words else []
    return ", ".join([words, *more, *untrained])


def _machine(result: RunResult) -> str:
    return str(result.environment.get("gpu") or result.environment.get("cpu"))


def split_words(result: RunResult) -> str:
    sizes = result.seeds[0].task_sizes
    return f"{len(sizes)} x {sizes[0]}" if len(set(sizes)) == 1 else " + ".join(map(str, sizes))


def _class_orders(result: RunResult, entries: Sequence[Entry]) -> str:
    """The orders of the seeds that all the runs have."""
    shared = set.intersection(*({seed.seed for seed in entry.result.seeds} for entry in entries))
    return "; ".join(f"{seed.seed}: {' '.join(map(str, seed.class_order))}" for seed in result.seeds if seed.seed in shared)


def images_words(result: RunResult, fact: str) -> str:
    images = result.environment.get("images")
    return str(images.get(fact, UNKNOWN)) if isinstance(images, dict) else UNKNOWN


def weights_words(result: RunResult) -> str:
    weights = result.environment.get("weights")
    return f"{weights.get('sha256', '')[:12]} {weights.get('source', '')}".strip() if isinstance(weights, dict) else UNKNOWN


def _number(result: RunResult, key: str) -> str:
    return str(result.config.get(key, UNKNOWN))


def _versions(result: RunResult) -> str:
    return ", ".join(f"{name} {version}" for name in VERSIONS if (version := result.environment.get(name))) or UNKNOWN


def _by(entries: Sequence[Entry], fact: Callable[[RunResult], str]) -> dict[str, list[str]]:
    """The labels of the entries grouped by `fact`."""
    groups: dict[str, list[str]] = {}
    for entry in entries:
        groups.setdefault(fact(entry.result), []).append(entry.label)
    return groups


def _listed(groups: dict[str, list[str]]) -> str:
    return "; ".join(f"{fact} ({', '.join(labels)})" for fact, labels in groups.items())
