"""Write exps/sets/*.json: SLCA, SLCA++ and SLCA best on every registered benchmark.

    python benchmarks/make_set_configs.py

A file's settings are those of the authors' release for the set that is most like it (`like`), with another stream; its notes say
so. Where the release has the set itself, only SLCA best is written, for SLCA and SLCA++ are in exps/.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.files import write_atomic  # noqa: E402

EXPS = ROOT / "exps"
RELEASE = {"cifar": "CIFAR-100", "imgnetr": "ImageNet-R", "cub": "CUB-200", "cars": "Cars-196"}  # its sets, by the names of its files
LEFT_OUT = ("prefix", "memory_size", "memory_per_class", "fixed_memory", "model_postfix", "notes", "$schema")
SMALL_STATISTICS = {"ca_cov": "lowrank", "ca_rank": 64, "stats_dtype": "float16"}  # thousands of Gaussians in a gigabyte or two
BEST = {"model_name": "slca_best", "epochs": 10, "lr": 0.01, "convnet_type": "vit-b-p16", "device": "auto"}


@dataclass(frozen=True)
class Stream:
    """A set and its tasks."""

    name: str  # of the files
    dataset: str
    like: str  # whose settings
    tasks: str  # where the stream is from
    settings: dict[str, Any] = field(default_factory=dict)
    only_best: bool = False  # the release has SLCA and SLCA++ on it


def classes(first: int, later: int, **more: Any) -> dict[str, Any]:
    return {"init_cls": first, "increment": later, **more}


PILOT = "10 tasks as in LAMDA-PILOT and RanPAC"
OURS = "ours"
DOMAINS = {"scenario": "domain", "shuffle": False}
STREAMS = (
    Stream("cifar", "cifar100_224", "cifar", "the release's", classes(10, 10), only_best=True),
    Stream("imgnetr", "imagenet-r", "imgnetr", "the release's", classes(20, 20), only_best=True),
    Stream("cub", "cub200_224", "cub", "the release's", classes(20, 20), only_best=True),
    Stream("cars", "cars196_224", "cars", "the release's, the small task last", classes(20, 20), only_best=True),
    Stream("cars_small_first", "cars196_224", "cars", "the small task of 16 classes first", classes(16, 20)),
    Stream("cub_pilot", "cub200_pilot", "cub", PILOT, classes(20, 20)),
    Stream("imgneta", "imagenet-a", "imgnetr", PILOT, classes(20, 20)),
    Stream("objectnet", "objectnet", "imgnetr", PILOT, classes(20, 20)),
    Stream("omnibenchmark", "omnibenchmark", "cifar", PILOT, classes(30, 30)),
    Stream("omnibenchmark1k", "omnibenchmark1k", "cifar", "100 tasks as in CaRE", classes(10, 10, **SMALL_STATISTICS)),
    Stream("vtab5", "vtab5", "cub", "one set after another, as in LAMDA-PILOT", classes(10, 10, shuffle=False)),
    Stream("five_datasets", "five_datasets", "cifar", "one set after another", classes(10, 10, shuffle=False)),
    Stream("food101", "food101", "cifar", OURS, classes(11, 10)),
    Stream("aircraft", "aircraft", "cars", OURS, classes(10, 10)),
    Stream("flowers102", "flowers102", "cub", OURS, classes(12, 10)),
    Stream("pets", "pets", "cub", OURS, classes(7, 5)),
    Stream("dtd", "dtd", "cub", OURS, classes(7, 5)),
    Stream("eurosat", "eurosat", "cifar", OURS, classes(2, 2)),
    Stream("resisc45", "resisc45", "cifar", OURS, classes(5, 5)),
    Stream("sketch345", "sketch345_224", "imgnetr", OURS, classes(35, 31)),
    Stream("sun397", "sun397", "imgnetr", OURS, classes(17, 20)),
    Stream("tiny_imagenet", "tiny_imagenet", "cifar", OURS, classes(20, 20)),
    Stream("inaturalist_mini", "inaturalist_mini", "cifar", OURS, classes(1000, 1000, **{**SMALL_STATISTICS, "ca_rank": 16})),
    Stream("imagenet100", "imagenet100", "cifar", OURS, classes(10, 10)),
    Stream("imagenet1000", "imagenet1000", "cifar", OURS, classes(100, 100, **SMALL_STATISTICS)),
    Stream("domainnet", "domainnet", "domainnet", "that of DUCT and E2-LoRA", {**DOMAINS, **SMALL_STATISTICS}, only_best=True),
    Stream("office_home", "office_home", "domainnet", "Art, Clipart, Product, Real World", DOMAINS),
    Stream("core50", "core50", "domainnet", "the benchmark's first run; the published accuracy is \"last on all domains\"", DOMAINS),
    Stream("cddb_hard", "cddb_hard", "domainnet", "that of S-Prompts and RanPAC", DOMAINS),
)


def configs() -> dict[str, dict[str, Any]]:
    """File name -> its settings."""
    found = {}
    for stream in STREAMS:
        for method, base in (("slca", f"slca_{stream.like}"), ("slcapp", f"slcapp_{stream.like}_lora")):
            if not stream.only_best:
                kept = {key: value for key, value in json.loads((EXPS / f"{base}.json").read_text()).items() if key not in LEFT_OUT}
                release = f"the authors' release for {RELEASE[stream.like]}, " if stream.like in RELEASE else ""
                whose = f"Settings of {release}exps/{base}.json; they were tuned for other images or another stream."
                found[f"{method}_{stream.name}"] = _config(stream, kept | {"model_name": method}, whose)
        seeds = {} if "scenario" in stream.settings else {"seed": [1993, 1996, 1997]}
        whose = "SLCA best with its defaults (docs/beyond.md), this project's own; nothing was tuned on this set."
        found[f"slca_best_{stream.name}"] = _config(stream, BEST | seeds, whose)
    return found


def _config(stream: Stream, settings: dict[str, Any], whose: str) -> dict[str, Any]:
    return {"$schema": "../schema.json", "notes": f"{whose} Stream: {stream.tasks}.",
            **settings, "dataset": stream.dataset, "device": "auto", **stream.settings}


def main() -> None:
    for name, settings in configs().items():
        write_atomic(EXPS / "sets" / f"{name}.json", json.dumps(settings, indent=2) + "\n")
    print(f"{len(configs())} files in {EXPS / 'sets'}")


if __name__ == "__main__":
    main()
