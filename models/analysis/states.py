"""One backbone after another on the same images: checkpoints put into a learner, and what it then makes of the images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.base import BaseLearner
from utils.data.fingerprint import changes
from utils.errors import DataChanged, UserError
from utils.run.checkpoint import Checkpoint, CheckpointStore, check_base_weights

CKA_IMAGES = 2000  # test images that representations are compared on


@dataclass(frozen=True)
class State:
    """What one backbone makes of the same images; N test and M training images of all K classes."""

    name: str
    task: int | None  # from 0; None for the pre-trained state
    train: Tensor  # (M, D), or (M, passes, D)
    test: Tensor  # (N, D), or (N, passes, D)
    blocks: dict[str, Tensor]  # block -> (n, d) of the test images at `Seen.compared`


class Seen:
    """The images that everything is measured on, and their labels: some training images of each class, all test images."""

    def __init__(self, learner: BaseLearner, per_class: int) -> None:
        data, tasks = learner.data, range(learner.stream.num_tasks)
        indices = data.task_indices("train", tasks)
        labels = data.labels_of("train", indices)
        chosen = np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in range(learner.stream.num_classes)])
        self.train_indices, self.test_indices = indices[np.sort(chosen)], data.task_indices("test", tasks)
        self.train_labels = data.labels_of("train", self.train_indices)  # (M,)
        self.test_labels = data.labels_of("test", self.test_indices)  # (N,)
        spread = np.random.default_rng(0).permutation(len(self.test_indices))[:CKA_IMAGES]
        self.compared = np.sort(spread)  # positions among the test images


def flat(features: Tensor) -> np.ndarray:
    """(N, D) of features (N, D) or (N, passes, D)."""
    return features.flatten(1).numpy()


def load_state(learner: BaseLearner, store: CheckpointStore, task: int) -> None:
    """Put the learner into its state after `task`, from 0. Raises UserError."""
    checkpoint = store.newest(task)
    if checkpoint is None or checkpoint.task != task:
        raise UserError(f"analyze: the checkpoint after task {task + 1} in {store.folder} is damaged")
    _check_data(learner, checkpoint, store.folder)
    check_base_weights(checkpoint, learner.untrained_sha256(checkpoint.weights), store.folder, learner.net.backbone.weights["source"])
    learner.load_network_state(checkpoint.weights, task)
    learner.load_extra_state({name: tensor.to(learner.fabric.device) for name, tensor in checkpoint.state.items()})
    learner.net.eval()


def _check_data(learner: BaseLearner, checkpoint: Checkpoint, where: Path) -> None:
    told = changes(checkpoint.meta["fingerprint"], learner.data.fingerprint)
    if told:
        raise DataChanged(f"analyze: the data have changed since {where / checkpoint.name} was written: {'; '.join(told)}. Put them back "
                          "as they were")


def state_of(learner: BaseLearner, seen: Seen, name: str, task: int | None) -> State:
    """Features of all images, and what each block makes of some of them."""
    train, _ = _extract(learner, "train", seen.train_indices)
    with watched(learner.net.backbone.model) as outputs:
        test, blocks = _extract(learner, "test", seen.test_indices, outputs, seen.compared)
    return State(name, task, train, test, {**blocks, "features": test[torch.from_numpy(seen.compared)]})


@torch.inference_mode()
def _extract(learner: BaseLearner, split: str, indices: np.ndarray, outputs: dict[str, Tensor] | None = None,
             compared: np.ndarray | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Features (N, D) of images in the order of `indices`, several passes side by side; and those of `outputs`, which hooks fill, of
    the images at `compared` (n,), ascending, (n, d).
    """
    features: list[Tensor] = []
    done = 0
    watched: dict[str, list[Tensor]] = {}
    batch_size = learner.config.test_batch_size or learner.config.batch_size
    learner.net.eval()
    for images, _ in learner.data.batches(split, indices=indices, batch_size=batch_size, augment=False):
        with learner.fabric.autocast():
            features.append(learner.features(learner.fabric.to_device(images)).float().cpu())
        if outputs is not None and compared is not None:
            rows = torch.from_numpy(compared[(compared >= done) & (compared < done + len(images))] - done)
            for name, output in outputs.items():
                watched.setdefault(name, []).append(output[rows])
        done += len(images)
    return torch.cat(features), {name: torch.cat(parts) for name, parts in watched.items()}


@contextmanager
def watched(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Keep what every block gave for the last batch: mean over the tokens, or over the places of a feature map, (N, d).

    A timm model has its blocks in `blocks`, or in `layer1` and so on; another is watched at its end alone (the features). Of a method
    that passes the backbone several times the last pass counts.
    """
    named = [(f"block {n + 1}", block) for n, block in enumerate(getattr(model, "blocks", []))]
    named = named or [(name, module) for name, module in model.named_children() if name.startswith(("layer", "stages"))]
    outputs: dict[str, Tensor] = {}

    def keeper(name: str) -> object:
        def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
            outputs[name] = (output.flatten(2).mean(dim=2) if output.ndim == 4 else output.mean(dim=1)).float().cpu()
        return keep

    handles = [module.register_forward_hook(keeper(name)) for name, module in named]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
