"""The papers' own figures, to be shown (labelled "paper") beside what a run measured.

They are shown where the run is the paper's experiment: its tasks as they were learned and every setting that can change a figure
are those of the file in exps/ that reproduces the row. Which seeds, and on what machine, plays no part.

Last / average incremental accuracy in percent, mean and, where the paper gives it, standard deviation over the
class orders of seeds 1993, 1996 and 1997. Setting: ViT-B/16 pre-trained on ImageNet-21K, ten tasks.
Sources: SLCA (ICCV 2023, arXiv 2303.05118) and SLCA++ (arXiv 2408.08295), which also ran the other methods; RanPAC's authors for
what is here without its phase 1 and for NCM. "RanPAC" itself is the full method, which tunes the backbone on the first task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.files import PROJECT
from utils.json_files import read_json
from utils.methods import resolve_name
from utils.report.results import RunResult

SOURCE = "the tables of SLCA (arXiv 2303.05118) and SLCA++ (arXiv 2408.08295), ViT-B/16 on ImageNet-21K, 10 tasks"
BACKBONES = ("vit-b-p16", "vit-b-p16-lora", "timm/vit_base_patch16_224.augreg_in21k")
RANPAC_SOURCE = ("RanPAC (arXiv 2307.02251), CIFAR-100, 10 tasks, as in paper_tables/Table_data_main_cifar224.csv of RanPAC/RanPAC "
                 "at e5e21b7")
CLASSES_PER_TASK = {"cifar100_224": 10, "imagenet-r": 20, "cub200_224": 20, "cars196_224": 20}
CLASSES = {"cifar100_224": 100, "imagenet-r": 200, "cub200_224": 200, "cars196_224": 196}

Figure = tuple[float, "float | None"]       # mean, standard deviation
Row = tuple["Figure | None", "Figure | None"]   # last, average incremental


def _row(last: float, average: float | None = None) -> Row:
    return (last, None), None if average is None else (average, None)


TABLE: dict[str, dict[str, Row]] = {
    "Joint training": {"cifar100_224": _row(93.22), "imagenet-r": _row(79.60), "cars196_224": _row(80.31)},
    "Seq FT": {
        "cifar100_224": _row(41.77), "imagenet-r": _row(26.95), "cub200_224": _row(40.02), "cars196_224": _row(27.57),
    },
    "Seq FT with SL": {"cifar100_224": _row(88.86, 92.01), "imagenet-r": _row(71.80, 76.84)},
    "SLCA": {
        "cifar100_224": ((91.53, 0.28), (94.09, 0.87)), "imagenet-r": ((77.00, 0.33), (81.17, 0.64)),
        "cub200_224": ((84.71, 0.40), (90.94, 0.68)), "cars196_224": ((67.73, 0.85), (76.93, 1.21)),
    },
    "SLCA++": {
        "cifar100_224": ((91.46, 0.18), (94.20, 0.71)), "imagenet-r": ((78.09, 0.22), (82.95, 0.78)),
        "cub200_224": ((86.59, 0.29), (91.63, 0.72)), "cars196_224": ((73.97, 0.22), (79.49, 0.80)),
    },
    "L2P": {
        "cifar100_224": _row(82.76, 88.48), "imagenet-r": _row(66.49, 72.83),
        "cub200_224": _row(62.21, 73.83), "cars196_224": _row(38.18, 51.79),
    },
    "DualPrompt": {
        "cifar100_224": _row(85.56, 90.33), "imagenet-r": _row(68.50, 72.59),
        "cub200_224": _row(66.00, 77.92), "cars196_224": _row(40.14, 56.74),
    },
    "CODA-Prompt": {
        "cifar100_224": _row(87.00, 90.68), "imagenet-r": _row(72.82, 78.13),
        "cub200_224": _row(77.23, 81.90), "cars196_224": _row(44.89, 58.91),
    },
    "LAE": {
        "cifar100_224": _row(85.59, 89.96), "imagenet-r": _row(72.66, 78.91),
        "cub200_224": _row(77.48, 85.83), "cars196_224": _row(52.47, 64.08),
    },
    "RanPAC": {
        "cifar100_224": _row(91.09, 94.03), "imagenet-r": _row(75.28, 80.66),
        "cub200_224": _row(87.88, 92.57), "cars196_224": _row(61.43, 72.36),
    },
    "No Phase 1": {"cifar100_224": _row(89.0)},
    "NCM only": {"cifar100_224": _row(83.4)},
}
OTHER_SOURCES = {"No Phase 1": RANPAC_SOURCE, "NCM only": RANPAC_SOURCE}

ROW_OF_METHOD = {
    "joint": "Joint training", "slca": "SLCA", "slcapp": "SLCA++", "l2p": "L2P", "dualprompt": "DualPrompt",
    "codaprompt": "CODA-Prompt", "lae": "LAE", "ranpac": "No Phase 1", "ncm": "NCM only",
}

# Which file of exps/ has a row's settings: begin of its name, then the data set.
FILE_OF_ROW = {
    "Joint training": "joint_{}", "Seq FT": "finetune_{}", "Seq FT with SL": "sl_{}", "SLCA": "slca_{}", "SLCA++": "slcapp_{}_lora",
    "L2P": "l2p_{}", "DualPrompt": "dualprompt_{}", "CODA-Prompt": "coda_prompt_{}", "No Phase 1": "ranpac_{}", "NCM only": "ncm_{}",
}
FILE_OF_DATASET = {"cifar100_224": "cifar", "imagenet-r": "imgnetr", "cub200_224": "cub", "cars196_224": "cars"}
# Settings whose default depends on the method; the schema has none for them.
BACKBONE_RATE = {"Joint training": 1.0, "Seq FT": 1.0, "Seq FT with SL": 0.01, "SLCA": 0.01, "SLCA++": 0.1}

# Not compared: the stream, which is compared as it was learned; names; seeds; and what changes a figure by rounding alone.
STREAM = {"dataset", "init_cls", "increment", "task_sizes", "tasks", "all_at_once"}
NAMES = {"$schema", "model_name", "model_postfix", "prefix", "notes", "convnet_type", "pretrained", "data_root"}
MACHINE = {"seed", "torch_seed", "device", "precision", "speed", "tf32", "compile", "channels_last", "deterministic",
           "num_workers", "cache", "augment_on", "bad_images", "accumulate", "test_batch_size", "grad_checkpointing", "keep_checkpoints",
           "checkpoint_minutes", "checkpoint_every", "resume", "save_before_ca", "ca_eval", "ca_memory_gb", "feature_cache",
           "feature_cache_gb"}
# Where exps/ has no file for a row's data set, CIFAR-100's is compared without what is tuned per data set.
TUNED = {"epochs", "milestones", "batch_size", "lr", "prompt_length", "prompt_top_k", "prompt_loss_weight", "test_transform"}


@dataclass(frozen=True)
class Published:
    """One cell of the paper's table; `figures` has the form of a run's summary: {"last": {"mean", "std"}, ...}."""

    row: str
    figures: dict[str, dict[str, float | None]]

    @property
    def words(self) -> str:
        """Where the figures come from, for the line under a table."""
        return f'paper: "{self.row}" in {OTHER_SOURCES.get(self.row, SOURCE)}'


def published_beside(result: RunResult) -> Published | None:
    """The paper's figures for a run's experiment as it was learned; none where its images are known to be divided otherwise."""
    return published(result.config, result.method, [seed.task_sizes for seed in result.seeds]) if result.on_published_split else None


def published(config: Mapping[str, Any], method: str, streams: Sequence[Sequence[int]] | None = None) -> Published | None:
    """The paper's figures for this experiment, or None where the experiment is not one of the paper's.

    Args:
        config: a run's resolved config; a setting that it lacks counts as the paper's.
        method: the resolved learner's name, e.g. "slca".
        streams: the classes of each task as they were learned, for every seed; None: as the config plans them.
    """
    row, dataset = _row_name(config, method), _dataset(config)
    cell = TABLE.get(row, {}).get(dataset)
    if cell is None or config.get("convnet_type") not in BACKBONES or not config.get("pretrained", True):
        return None
    expected = _stream_of(row, dataset)
    if any(list(sizes) != expected for sizes in (streams if streams is not None else [_planned_stream(config, row, dataset)])):
        return None
    if _settings_that_differ(config, method, row, dataset):
        return None
    named = zip(("last", "average_incremental"), cell, strict=True)
    return Published(row, {name: {"mean": figure[0], "std": figure[1]} for name, figure in named if figure})


def _dataset(config: Mapping[str, Any]) -> str:
    dataset = config.get("dataset")
    return dataset if isinstance(dataset, str) else ""         # a described data set is never one of the paper's


def _row_name(config: Mapping[str, Any], method: str) -> str:
    name = method.lower().replace("_", "").replace("-", "").replace("++", "pp")
    if name == "finetune" or (name == "slca" and config.get("ca_epochs") == 0):
        return "Seq FT" if config.get("bcb_lrscale") == 1 else "Seq FT with SL"
    return ROW_OF_METHOD.get(name, "")


# The stream ----------------------------------------------------------------------------------------------------


def _stream_of(row: str, dataset: str) -> list[int]:
    """Classes of each of the paper's tasks."""
    total = CLASSES[dataset]
    return [total] if row == "Joint training" else _cut(total, CLASSES_PER_TASK[dataset], CLASSES_PER_TASK[dataset])


def _planned_stream(config: Mapping[str, Any], row: str, dataset: str) -> list[int]:
    """Classes of each task as the config plans them: what wins comes first (utils/data/tasks.py)."""
    all_at_once = config.get("all_at_once")
    if all_at_once or (all_at_once is None and row == "Joint training"):
        return [CLASSES[dataset]]
    if config.get("tasks"):
        return [len(task) for task in config["tasks"]]
    if config.get("task_sizes"):
        return list(config["task_sizes"])
    return _cut(CLASSES[dataset], config.get("init_cls") or 0, config.get("increment") or 0)


def _cut(total: int, first: int, later: int) -> list[int]:
    """The first task's classes, then `later` in each, the last one with the rest; `later` 0: all that are left."""
    sizes = [min(first, total)]
    while sum(sizes) < total:
        left = total - sum(sizes)
        sizes.append(min(later, left) or left)
    return sizes


# The settings --------------------------------------------------------------------------------------------------


def _settings_that_differ(config: Mapping[str, Any], method: str, row: str, dataset: str) -> set[str]:
    """Settings of the run that are not those of the file in exps/ that reproduces the row."""
    file, ignored = _reference_file(row, dataset), STREAM | NAMES | MACHINE
    if file is None:
        file, ignored = _reference_file(row, "cifar100_224"), ignored | TUNED
    if file is None:  # a paper's method that is not here
        return {"model_name"}
    reference, schema = read_json(file), read_json(PROJECT / "exps" / "schema.json")["properties"]
    method = resolve_name(method)
    differ = set()
    for key, value in config.items():
        if key in ignored or (row == "Seq FT with SL" and key.startswith("ca_")):  # nothing is aligned
            continue
        known = schema.get(key, {})
        usual = known.get("x-defaults", {}).get(method, known.get("default", value))
        default = BACKBONE_RATE.get(row, 0.0) if key == "bcb_lrscale" else usual
        wanted = reference.get(key, default)
        if value != wanted and not (value is None and wanted == default):  # null means the default
            differ.add(key)
    return differ


def _reference_file(row: str, dataset: str) -> Path | None:
    name = FILE_OF_ROW.get(row)
    file = PROJECT / "exps" / f"{name.format(FILE_OF_DATASET[dataset])}.json" if name else None
    return file if file is not None and file.is_file() else None
