"""Folders of small drawn images, one sub-folder per class, and runs on them, for tests that need files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.run_files import tensors, tiny_config
from tests.support import that_it_has
from utils.config import Config
from utils.run.checkpoint import CheckpointStore

SIZE = 16  # pixels a side


def pixels(name: str, count: int, split: str = "train") -> np.ndarray:
    """(count, 16, 16, 3) uint8: the class's own pattern under noise, the same for the same arguments."""
    pattern = np.random.default_rng([*name.encode()]).integers(40, 216, (SIZE, SIZE, 3))
    noise = np.random.default_rng([*f"{name} {split}".encode()]).normal(0, 25, (count, SIZE, SIZE, 3))
    return (pattern + noise).clip(0, 255).astype(np.uint8)


def draw(folder: Path, names: Sequence[str], count: int, split: str = "train") -> Path:
    """`count` images of every class in `folder`/<class>/."""
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(pixels(name, count, split)):
            Image.fromarray(image).save(folder / name / f"{number}.png")
    return folder


def photos(folder: Path, names: list[str]) -> dict[str, str]:
    """Training and test folder of drawn classes."""
    return {"train": str(draw(folder / "train", names, 8)), "test": str(draw(folder / "test", names, 3, "test"))}


def config_of(folder: Path, method: str, tasks: list[list[str]], **settings) -> Config:
    """A run of `method` over `tasks` of photos, which are drawn."""
    names = [name for task in tasks for name in task]
    dataset = {"name": "photos", **photos(folder, names), "image_size": 16, "train_transform": "crop32"}
    usual = {"model_name": method, "dataset": dataset, "tasks": tasks, "num_workers": 0, "checkpoint_every": 5}
    return tiny_config(**{**that_it_has(method, {"epochs": 2, "memory_size": 14}), **usual, **settings})


def last_checkpoint(run: Path) -> dict[str, torch.Tensor]:
    """Tensors of the newest checkpoint of a run of one seed, by file and name."""
    (seed,) = run.glob("seed*")
    newest = CheckpointStore(seed / "checkpoints").names()[-1]
    return {name.split(f"/{newest}/")[1]: tensor for name, tensor in tensors(run).items() if f"/{newest}/" in name}
