"""Small stand-ins that several tests share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from convs.backbones import Backbone, build_backbone, describe
from convs.network import IncrementalNet
from models import learner_class, resolve_config
from models.base import BaseLearner
from utils.config import Config, MethodSettings, parse_config
from utils.data.data_manager import DataManager
from utils.data.stream import TaskStream
from utils.methods import catalogue, resolve_name
from utils.run.monitor import Monitor

PARITY = Path(__file__).parent / "data" / "parity"
MICRO_VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 4}
SMALL = {
    "ranpac": {"ranpac_dim": 64},
    **{name: {"adapter_width": 4} for name in ("aper", "ease", "tuna", "mos")},
    "l2p": {"prompt_length": 2},
    "dualprompt": {"g_prompt_layers": [0], "prompt_layers": [1]},
    "coda_prompt": {"prompt_layers": [0, 1], "prompt_pool": 8},
    "ssiat": {"adapter_width": 4},
    "lae": {"adapter_width": 2, "lae_blocks": 1},
    "inflora": {"lora_rank": 2},
    "sd_lora": {"lora_rank": 2},
    "sldc": {"sldc_steps": 20, "sldc_moment_samples": 1, "ca_epochs": 1, "ca_samples": 8},
}


class StubBatches(list):
    """Batches that nobody has to make."""

    def before(self, following: StubBatches | None) -> StubBatches:
        return self


class StubData:
    """Tasks and batches that a test hands over, where a learner expects a DataManager."""

    def __init__(self, task_sizes: list[int], batches: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] | None = None) -> None:
        self.stream, self.given = TaskStream(list(range(sum(task_sizes))), task_sizes), batches or {}

    def batches(self, split: str, tasks: int | None = None, indices: np.ndarray | None = None,
                **_: Any) -> StubBatches:
        """Those given for the task, or the images at `indices` as one batch; images are numbered over all tasks."""
        if indices is None:
            return StubBatches(self.given[tasks])
        images, labels = (torch.cat([batch[part] for task in sorted(self.given) for batch in self.given[task]]) for part in (0, 1))
        return StubBatches([(images[indices], labels[indices])])

    def task_indices(self, split: str, task: int) -> np.ndarray:
        first = sum(self.count(split, earlier) for earlier in self.given if earlier < task)
        return np.arange(first, first + self.count(split, task))

    def count(self, split: str, task: int) -> int:
        return sum(len(batch[1]) for batch in self.given[task])


def make_config(**settings: Any) -> MethodSettings:
    """A valid config of a tiny SLCA run with `settings` on top; other methods get sizes that fit the micro ViT."""
    tiny = {"model_name": "slca", "dataset": "synthetic", "init_cls": 2, "increment": 2, "epochs": 1, "pretrained": False,
            "convnet_type": {"timm": "vit_tiny_patch16_224", "args": MICRO_VIT}, "device": "cpu", "seed": 1993}
    return resolve_config(parse_config({**tiny, **SMALL.get(settings.get("model_name", ""), {}), **settings}))


def that_it_has(model_name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Those of `settings` that all methods or this one have."""
    own = catalogue().methods[resolve_name(model_name)].keys
    return {key: value for key, value in settings.items() if key in Config.model_fields or key in own}


def micro_backbone(reset_norm: bool = True, **args: Any) -> Backbone:
    """The micro ViT of the parity vectors, random weights."""
    return build_backbone(describe("vit_tiny_patch16_224", {**MICRO_VIT, **args}), pretrained=False, reset_norm=reset_norm)


def make_learner(config: MethodSettings, data: StubData | DataManager, backbone: Backbone | None = None) -> BaseLearner:
    net = IncrementalNet(backbone or micro_backbone())
    return learner_class(config.model_name)(config, data, net, Fabric(accelerator="cpu", devices=1))


def load_parity(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and JSON of one parity vector; either may be missing."""
    arrays = dict(np.load(PARITY / f"{name}.npz")) if (PARITY / f"{name}.npz").exists() else {}
    facts = json.loads((PARITY / f"{name}.json").read_text()) if (PARITY / f"{name}.json").exists() else {}
    return arrays, facts


def our_name(reference: str) -> str:
    """A parameter's name in the release -> its name in IncrementalNet."""
    name = reference.replace("convnet.", "backbone.model.").replace("fc.heads.", "heads.")
    if name.startswith("heads."):
        name = name.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
    for theirs, ours in (("attn.lora_", "attn.qkv.lora_"), ("mlp.lora_1_", "mlp.fc1.lora_"), ("mlp.lora_2_", "mlp.fc2.lora_")):
        name = name.replace(theirs, ours)
    return name


def parity_state(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, torch.Tensor]:
    """The parameters under `prefix` ("t0/init/") by our names; the heads' scales, 1 in stage 1, are left out."""
    return {our_name(key.removeprefix(prefix)): torch.from_numpy(value) for key, value in arrays.items()
            if key.startswith(prefix) and ".scales." not in key}


def synthetic_learner(method: str, **settings: Any) -> BaseLearner:
    """A learner of `method` on real batches: six classes in three tasks, 12 training images of each, memory for 20."""
    dataset = {"name": "tiny", "layout": "synthetic", "num_classes": 6, "image_size": 16, "train_per_class": 12, "test_per_class": 2,
               "train_transform": "none"}
    usual = that_it_has(method, {"model_name": method, "dataset": dataset, "batch_size": 8, "memory_size": 20})
    config = make_config(**{**usual, **settings})
    return make_learner(config, DataManager(config, seed=1993))


def learn(learner: BaseLearner, tasks: Sequence[int]) -> None:
    for task in tasks:
        learner.learn_task(task, Monitor())
