"""Use a trained run: classify images, export the aligned model. Needs the run's folder, no data set.

    from models.tools.predict import load_learner
    found = load_learner("logs/slca_demo").predict(images)       # images: files, PIL images or arrays
    found.names[0], found.probabilities[0]                       # of the first image, best first
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convs.network import IncrementalNet
from convs.weights import tensors_sha256
from models.base import BaseLearner
from models.registry import learner_class, resolve_config
from models.tools.build import make_backbone
from utils.config import MethodSettings, parse_config
from utils.data.folders import image_files
from utils.data.stream import InputFormat, StoredData
from utils.errors import UserError
from utils.files import write_atomic
from utils.images.store import read_image
from utils.machine.device import make_fabric, parse_device
from utils.report.results import csv_text
from utils.run.checkpoint import Checkpoint, CheckpointStore, check_base_weights
from utils.run.run_folder import RunFolder

log = logging.getLogger("slca")

ImagesIn = np.ndarray | Tensor | Sequence["str | Path | Image.Image | np.ndarray"]
NOTHING_FROZEN = tensors_sha256([])


@dataclass(frozen=True)
class Predictions:
    """The k best classes of N images, best first."""

    names: list[list[str]]  # (N, k)
    labels: list[list[int]]  # (N, k) the data set's own labels
    probabilities: Tensor  # (N, k), of the classes that the run had seen; softmax of the scores, not calibrated unless the method does it


class TrainedLearner:
    """A learner as one of a run's checkpoints holds it, with what it needs to know about images and classes."""

    def __init__(self, learner: BaseLearner, inputs: InputFormat, batch_size: int) -> None:
        self.learner, self.stream, self.format, self.batch_size = learner, learner.stream, inputs, batch_size
        self.transform = inputs.transform()

    @torch.inference_mode()
    def predict(self, images: ImagesIn, top_k: int = 5) -> Predictions:
        """Classify images of any size.

        Args:
            images: paths, PIL images or arrays (H, W[, C]) uint8 in a list; or one array (N, H, W[, C]) or tensor (N, C, H, W), uint8.
            top_k: classes per image, at most those seen.

        Raises:
            UserError: an image cannot be read, or the images are no uint8 pixels.
        """
        if top_k < 1:
            raise UserError(f"top_k: got {top_k}, allowed: 1 or more")
        found = [self._probabilities(images[i:i + self.batch_size]) for i in range(0, len(images), self.batch_size)]
        if not found:
            return Predictions([], [], torch.empty(0, 0))
        best = torch.cat(found).topk(min(top_k, found[0].shape[1]), dim=1)
        return Predictions([[self.class_name(c) for c in row] for row in best.indices.tolist()],
                           [[self.stream.class_order[c] for c in row] for row in best.indices.tolist()], best.values)

    def class_name(self, label: int) -> str:
        """Name of a class by its place in the learning order; without the domain's where domains are told apart."""
        name = self.stream.class_names[label]
        return name.split("/", 1)[1] if self.stream.label_period is not None else name

    def inputs(self, images: ImagesIn) -> Tensor:
        """The network's input (N, C, S, S) under the test transform."""
        pixels = _stacked(images) if isinstance(images, (np.ndarray, Tensor)) else [_pixels(image) for image in images]
        return self.transform(pixels, torch.empty(len(images), self.transform.draws, dtype=torch.float64))

    def _probabilities(self, images: ImagesIn) -> Tensor:
        fabric = self.learner.fabric
        with fabric.autocast():
            features = self.learner.features(self.inputs(images).to(fabric.device)).float()
        return self.learner.probabilities(features).cpu()


def load_learner(run: str | Path, *, seed: int | None = None, after_task: int | None = None, device: str = "auto") -> TrainedLearner:
    """The trained learner of a run.

    Args:
        run: a run's folder, or an experiment's (its newest run).
        seed: which of the run's seeds; default the first that has a checkpoint.
        after_task: the checkpoint after this task, counted from 1; default the newest.
        device: as the setting `device`.

    Raises:
        UserError: there is no such run or checkpoint, or its frozen base weights are not there.
    """
    folder = Path(run)
    found = RunFolder(folder) if (folder / "run.json").is_file() else RunFolder.newest(folder)
    config = resolve_config(parse_config({**found.status().get("config", {}), "device": device}, source=str(found.path / "run.json")))
    if seed is not None and seed not in config.seeds:
        raise UserError(f"seed: got {seed}, allowed: {', '.join(map(str, config.seeds))}, the seeds of {found.path}")
    for number in config.seeds if seed is None else [seed]:
        store = CheckpointStore(found.path / f"seed{number}" / "checkpoints", warn=log.warning)
        checkpoint = store.newest(None if after_task is None else after_task - 1)
        if checkpoint is not None and (after_task is None or checkpoint.task == after_task - 1):
            return _restore(config, checkpoint, store.folder)
    raise UserError(f"{found.path} has no checkpoint{'' if after_task is None else f' after task {after_task}'}; train first "
                    "(keep_checkpoints must not be 'none', and 'all' keeps every task's)")


def _restore(config: MethodSettings, checkpoint: Checkpoint, where: Path) -> TrainedLearner:
    """The learner of a checkpoint. Pre-trained weights are read only where part of them stayed frozen."""
    if checkpoint.meta["base_sha256"] == NOTHING_FROZEN:
        config = config.model_copy(update={"pretrained": False})
    on_cpu = parse_device(config.device)[0] == "cpu"
    fabric = make_fabric(config.device, "32-true" if on_cpu and config.precision == "16-mixed" else config.precision)
    data = StoredData.from_json(checkpoint.meta["data"])
    learner = learner_class(config.model_name)(config, data, IncrementalNet(make_backbone(config)), fabric)
    check_base_weights(checkpoint, learner.untrained_sha256(checkpoint.weights), where, learner.net.backbone.weights["source"])
    learner.load_network_state(checkpoint.weights, checkpoint.task)
    learner.load_extra_state({name: tensor.to(fabric.device) for name, tensor in checkpoint.state.items()})
    learner.net.eval()
    return TrainedLearner(learner, data.inputs, config.test_batch_size or config.batch_size)


def _stacked(images: np.ndarray | Tensor) -> Tensor:
    """(N, H, W[, C]) array or (N, C, H, W) tensor -> (N, C, H, W) uint8. Raises UserError."""
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.ascontiguousarray(images if images.ndim == 4 else images[..., None])).permute(0, 3, 1, 2)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UserError(f"images: got {images.dtype} of shape {tuple(images.shape)}, allowed: uint8, an array (N, H, W) or (N, H, W, 1 or "
                        "3), or a tensor (N, 1 or 3, H, W)")
    return images


def _pixels(image: str | Path | Image.Image | np.ndarray) -> Tensor:
    """One image -> (C, H, W) uint8. Raises UserError."""
    if isinstance(image, (str, Path)):
        return torch.from_numpy(read_image(Path(image))).permute(2, 0, 1)
    array = np.array(image.convert("RGB")) if isinstance(image, Image.Image) else np.asarray(image)
    return _stacked(array[None])[0]


# Command line --------------------------------------------------------------------------------------------------


def predict_folder(arguments: argparse.Namespace) -> None:
    """Print one line per image, best classes first, and write the same as CSV. Raises UserError."""
    if not arguments.images.exists():
        raise UserError(f"{arguments.images} does not exist; name a folder of images, or one image")
    files = image_files(arguments.images) if arguments.images.is_dir() else [arguments.images]
    if not files:
        raise UserError(f"{arguments.images} holds no image files; name a folder of images (png, jpg, ...)")
    trained = load_learner(arguments.run, seed=arguments.seed, after_task=arguments.after_task, device=arguments.device)
    rows: list[dict[str, Any]] = []
    width = max(len(str(file)) for file in files)
    for start in range(0, len(files), trained.batch_size):
        readable = _read(files[start:start + trained.batch_size])
        found = trained.predict(list(readable.values()), arguments.top)
        for file, names, probabilities in zip(readable, found.names, found.probabilities.tolist(), strict=True):
            best = list(zip(names, probabilities, strict=True))
            print(f"{file!s:{width}}  " + "  ".join(f"{name} {100 * p:.1f}%" for name, p in best))
            rows.append({"file": str(file), **{key: value for rank, (name, p) in enumerate(best, 1)
                                               for key, value in ((f"class_{rank}", name), (f"probability_{rank}", p))}})
    target = arguments.csv or arguments.run / "predictions.csv"
    write_atomic(target, csv_text(rows))
    print(f"\n{len(rows)} of {len(files)} images: {target}")


def _read(files: Sequence[Path]) -> dict[Path, np.ndarray]:
    """Pixels of the files that can be read; the others are named and left out."""
    pixels = {}
    for file in files:
        try:
            pixels[file] = read_image(file)
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
    return pixels
