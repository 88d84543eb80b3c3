"""What sets of ImageNet's and DomainNet's size cost: listing them, starting from the kept list, and a task's statistics and evaluation.

    python benchmarks/large_sets.py                  # 1.33 million empty files in a temporary folder, then 0.59 million; some minutes
    python benchmarks/large_sets.py --share 0.01     # a hundredth of the files of every class

The files are empty: nothing is decoded. Every row is a process of its own; memory is what it takes beyond its imports. In the last rows
a learner that is made before the clock starts gets random features of a ViT-B's width in place of the images'.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common import PAGE, PROJECT

IMAGENET = {"train": 1_281_167, "val": 50_000}
DOMAINNET = {"train": 409_832, "test": 176_743}
CLASSES, DOMAIN_CLASSES, WIDTH = 1000, 345, 768
MIB = 2**20
SETTLED = 2.5  # seconds; a folder that has just changed is not trusted (utils/data/index.py)


# The trees ---------------------------------------------------------------------------------------------------

def make_imagenet(root: Path, share: float) -> int:
    """Empty files as ImageNet-1k has them. Returns their number."""
    made = 0
    for part, count in IMAGENET.items():
        for label in range(CLASSES):
            folder = root / "imagenet1000" / part / f"n{10_000_000 + label}"
            folder.mkdir(parents=True)
            own = count // CLASSES + (label < count % CLASSES)
            for i in range(max(1, round(share * own))):
                os.close(os.open(folder / f"{folder.name}_{10_000 + i}.JPEG", os.O_CREAT | os.O_WRONLY))
                made += 1
    return made


def make_domainnet(root: Path, share: float) -> int:
    """Empty files and lists as DomainNet has them. Returns the number of files."""
    from utils.data.registry import DOMAINS

    made, folder = 0, root / "domainnet"
    for domain in DOMAINS:
        lists: dict[str, list[str]] = {part: [] for part in DOMAINNET}
        for label in range(DOMAIN_CLASSES):
            place = folder / domain / f"class_{label:03d}"
            place.mkdir(parents=True)
            for part, count in DOMAINNET.items():
                for i in range(max(1, round(share * count / len(DOMAINS) / DOMAIN_CLASSES))):
                    name = f"{domain}_{label:03d}_{part}_{i:06d}.jpg"
                    os.close(os.open(place / name, os.O_CREAT | os.O_WRONLY))
                    lists[part].append(f"{domain}/{place.name}/{name} {label}")
                    made += 1
        for part, lines in lists.items():
            (folder / f"{domain}_{part}.txt").write_text("\n".join(lines) + "\n")
    return made


# What is measured, in a process of its own ---------------------------------------------------------------------

def load(root: str, name: str) -> dict[str, float]:
    """The list of images, from the folders or from the kept file."""
    from utils.data.registry import load_dataset

    train, test, _ = load_dataset(name, root)
    entries = len(train) + len(test)
    kept = sum(part.images.nbytes + part.labels.nbytes + (0 if part.domains is None else part.domains.nbytes) for part in (train, test))
    return {"entries": entries, "MiB of the list": kept / MIB}


def start(root: str, name: str) -> dict[str, float]:
    """All that a run does with the data before its first batch."""
    data = _data(root, name)
    return {"classes in the fingerprint": len(data.fingerprint["train"])}


def statistics(learner: Any) -> dict[str, float]:
    """Gaussians of the first task, with low-rank covariances."""
    from utils.run.monitor import Monitor

    learner.begin_task(0)
    learner.collect_statistics(0, Monitor())
    images = learner.data.count("train", 0)
    return {"images": images, "MiB of their features": images * WIDTH * 4 / MIB}


def evaluation(learner: Any) -> dict[str, float]:
    """Accuracies on the test images of all tasks."""
    for task in range(learner.stream.num_tasks):
        learner.begin_task(task)
    learner.evaluate(learner.stream.num_tasks - 1)
    images = learner.data.count("test", range(learner.stream.num_tasks))
    return {"images": images, "MiB of their features": images * WIDTH * 4 / MIB}


def _settings(root: str, name: str) -> Any:
    from models.registry import resolve_config
    from utils.config import parse_config

    domain = name == "domainnet"
    return resolve_config(parse_config({
        "model_name": "slca", "dataset": name, "data_root": root, "epochs": 1, "pretrained": False, "device": "cpu", "cache": "none",
        "num_workers": 0, "ca_cov": "lowrank", "ca_rank": 64, "stats_dtype": "float16", "batch_size": 256, "normalize": "dataset",
        "convnet_type": {"timm": "vit_tiny_patch16_224", "args": {"embed_dim": WIDTH, "depth": 1, "num_heads": 12}},
        **({"scenario": "domain"} if domain else {"init_cls": 100, "increment": 100})}))


def _data(root: str, name: str) -> Any:
    from utils.data.data_manager import DataManager

    return DataManager(_settings(root, name), seed=1993)


def _learner(root: str, name: str) -> Any:
    """An SLCA learner whose images are single pixels and whose features are drawn."""
    import torch
    from lightning_fabric import Fabric

    from convs.backbones import build_backbone
    from convs.network import IncrementalNet
    from models.registry import learner_class
    from models.tools.build import backbone_entry

    config, data = _settings(root, name), _data(root, name)
    net = IncrementalNet(build_backbone(backbone_entry(config), pretrained=False, reset_norm=True))
    learner = learner_class("slca")(config, data, net, Fabric(accelerator="cpu", devices=1))
    generator = torch.Generator().manual_seed(0)

    def batches(split: str, tasks: Any = None, *, batch_size: int, **_: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        labels = torch.from_numpy(data.labels(split, tasks))
        return ((torch.zeros(len(part), 1), part) for part in labels.split(batch_size))

    data.batches = batches
    learner.features = lambda images: torch.randn(len(images), WIDTH, generator=generator)
    return learner


STAGES: dict[str, Callable[..., dict[str, float]]] = {
    "load": load, "start": start, "statistics": statistics, "evaluation": evaluation}


def measure(stage: str, root: str, name: str) -> dict[str, float]:
    import models  # noqa: F401  what every run imports
    from utils.data.data_manager import DataManager  # noqa: F401

    prepared = (_learner(root, name),) if stage in ("statistics", "evaluation") else (root, name)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
    begin, cpu = time.perf_counter(), time.process_time()
    found = STAGES[stage](*prepared)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "processor seconds": cpu, "MiB at most": (peak - before) / MIB, **found}


def in_own_process(stage: str, root: Path, name: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, __file__, "--stage", stage, "--folder", str(root), "--set", name], check=True, text=True,
                          stdout=subprocess.PIPE, cwd=PROJECT)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=1.0, help="of the files of every class (default: 1)")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made (default: the system's)")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--set", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        print(json.dumps(measure(arguments.stage, str(arguments.folder), arguments.set)))
        return
    for name, make in (("imagenet1000", make_imagenet), ("domainnet", make_domainnet)):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as root:
            print(f"{name}: {make(Path(root), arguments.share):,} files")
            time.sleep(SETTLED)
            for row, stage in (("listed", "load"), ("from the kept list", "load"), ("start of a run", "start"),
                               ("statistics of a task", "statistics"), ("evaluation", "evaluation")):
                found = in_own_process(stage, Path(root), name)
                figures = (f"{value:,.2f} {key}" if value < 1000 else f"{value:,.0f} {key}" for key, value in found.items())
                print(f"  {row:22}" + ", ".join(figures))


if __name__ == "__main__":
    main()
