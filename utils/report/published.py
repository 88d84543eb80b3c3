"""The papers' own figures, to be shown (labelled "paper") beside what a run measured.

Last / average incremental accuracy in percent, mean and, where the paper gives it, standard deviation over the
class orders of seeds 1993, 1996 and 1997. Setting: ViT-B/16 pre-trained on ImageNet-21K, ten tasks.
Sources: SLCA (ICCV 2023, arXiv 2303.05118) and SLCA++ (arXiv 2408.08295), which also ran the other methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SOURCE = "the tables of SLCA (arXiv 2303.05118) and SLCA++ (arXiv 2408.08295), ViT-B/16 on ImageNet-21K, 10 tasks"
BACKBONES = ("vit-b-p16", "vit-b-p16-lora", "timm/vit_base_patch16_224.augreg_in21k")
CLASSES_PER_TASK = {"cifar100_224": 10, "imagenet-r": 20, "cub200_224": 20, "cars196_224": 20}

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
}

ROW_OF_METHOD = {
    "joint": "Joint training", "slca": "SLCA", "slcapp": "SLCA++", "l2p": "L2P", "dualprompt": "DualPrompt",
    "codaprompt": "CODA-Prompt", "lae": "LAE", "ranpac": "RanPAC",
}


@dataclass(frozen=True)
class Published:
    """One cell of the paper's table; `figures` has the form of a run's summary: {"last": {"mean", "std"}, ...}."""

    row: str
    figures: dict[str, dict[str, float | None]]

    @property
    def words(self) -> str:
        """Where the figures come from, for the line under a table."""
        return f'paper: "{self.row}" in {SOURCE}'


def published(config: Mapping[str, Any], method: str) -> Published | None:
    """The paper's figures for this experiment, or None where the experiment is not one of the paper's.

    It is one of them when data set, method, backbone (ImageNet-21K) and the split into ten tasks agree. Seeds
    and hyper-parameters are not compared: the figure is a reference beside the run, not a claim about it.

    Args:
        config: a run's resolved config.
        method: the resolved learner's name, e.g. "slca".
    """
    row = _row_name(config, method)
    cell = TABLE.get(row, {}).get(_dataset(config))
    if cell is None or config.get("convnet_type") not in BACKBONES or not config.get("pretrained", True):
        return None
    if row != "Joint training" and not _ten_tasks(config):
        return None
    named = zip(("last", "average_incremental"), cell, strict=True)
    return Published(row, {name: {"mean": figure[0], "std": figure[1]} for name, figure in named if figure})


def _dataset(config: Mapping[str, Any]) -> str:
    dataset = config.get("dataset")
    return dataset if isinstance(dataset, str) else ""         # a described data set is never one of the paper's


def _ten_tasks(config: Mapping[str, Any]) -> bool:
    return config.get("init_cls") == config.get("increment") == CLASSES_PER_TASK[_dataset(config)]


def _row_name(config: Mapping[str, Any], method: str) -> str:
    name = method.lower().replace("_", "").replace("-", "").replace("++", "pp")
    if name == "finetune" or (name == "slca" and config.get("ca_epochs") == 0):
        return "Seq FT" if config.get("bcb_lrscale") == 1 else "Seq FT with SL"
    return ROW_OF_METHOD.get(name, "")
