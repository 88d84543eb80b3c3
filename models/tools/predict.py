"""Use a trained run: classify images, export the aligned model. Needs the run's folder, no data set.

    from models.tools.predict import load_learner
    found = load_learner("logs/slca_demo").predict(images)       # images: files, PIL images or arrays
    found.names[0], found.probabilities[0]                       # of the first image, best first
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
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
from models.base import BaseLearner, KnownRegion
from models.registry import learner_class, resolve_config
from models.tools.build import make_backbone
from models.unknown import SCORES
from utils.config import MethodSettings, parse_config
from utils.data.folders import image_files
from utils.data.stream import InputFormat, StoredData
from utils.errors import UserError
from utils.files import write_atomic
from utils.images.store import read_image
from utils.machine.device import make_fabric, parse_device
from utils.report.results import csv_text
from utils.run.checkpoint import Checkpoint, CheckpointStore, check_base_weights
from utils.run.interrupt import check_stop
from utils.run.run_folder import RunFolder
from utils.terminal import show, visible_name

log = logging.getLogger("slca")

ImagesIn = np.ndarray | Tensor | Sequence["str | Path | Image.Image | np.ndarray"]
NOTHING_FROZEN = tensors_sha256([])


@dataclass(frozen=True)
class Predictions:
    """The k best classes of N images, best first."""

    names: list[list[str]]  # (N, k)
    labels: list[list[int]]  # (N, k) the data set's own labels
    probabilities: Tensor  # (N, k), of the classes that the run had seen; calibrated where val_fraction held out images
    unknown: list[bool] | None = None  # (N,) where asked for: the image is of none of the classes (models/unknown.py)


class TrainedLearner:
    """A learner as one of a run's checkpoints holds it, with what it needs to know about images and classes."""

    def __init__(self, learner: BaseLearner, inputs: InputFormat, batch_size: int) -> None:
        self.learner, self.stream, self.format, self.batch_size = learner, learner.stream, inputs, batch_size
        self.transform = inputs.transform()
        self._regions: dict[str, KnownRegion] = {}  # by score, made when first asked whether an image is unknown
        self._thresholds: dict[tuple[str, float], float] = {}  # by score and the share of known images that they keep

    def on_cpu(self) -> TrainedLearner:
        """The same learner on the CPU: itself, or a copy by its state, which is all that a learner carries from task to task."""
        learner = self.learner
        if learner.fabric.device.type == "cpu":
            return self
        config = learner.config.model_copy(update={"device": "cpu", "pretrained": False})  # all weights are in the network's state
        net, fabric = IncrementalNet(make_backbone(config)), make_fabric("cpu", "32-true")
        copied = learner_class(config.model_name)(config, learner.data, net, fabric)
        copied.load_network_state({name: tensor.cpu() for name, tensor in learner.net.state_dict().items()}, learner.task)
        copied.load_extra_state({name: tensor.cpu() for name, tensor in learner.extra_state().items()})
        copied.temperature = learner.temperature
        copied.net.eval()
        return TrainedLearner(copied, self.format, self.batch_size)

    @torch.inference_mode()
    def predict(self, images: ImagesIn, top_k: int = 5, known_share: float | None = None, unknown_score: str = "distance") -> Predictions:
        """Classify images of any size.

        Args:
            images: paths, PIL images or arrays (H, W[, C]) uint8 in a list; or one array (N, H, W[, C]) or tensor (N, C, H, W), uint8.
            top_k: classes per image, at most those seen.
            known_share: also tell which images are of no known class, keeping this share of the known classes' (0.95 is usual).
            unknown_score: by which, "distance" or "energy" (models/unknown.py).

        Raises:
            UserError: an image cannot be read, the images are no uint8 pixels, or the method cannot tell unknown ones.
        """
        if top_k < 1:
            raise UserError(f"top_k: got {top_k}, allowed: 1 or more")
        starts = range(0, len(images), self.batch_size)
        features = [self._features(self.inputs(images[i:i + self.batch_size])) for i in starts]
        return self._best(features, top_k, known_share, unknown_score)

    @torch.inference_mode()
    def predict_cut(self, images: Sequence[Tensor], top_k: int = 5, known_share: float | None = None,
                    unknown_score: str = "distance") -> Predictions:
        """As `predict`, of at most `batch_size` images that `cut` has made small."""
        return self._best([self._features(self._finished(images))] if images else [], top_k, known_share, unknown_score)

    def _best(self, features: list[Tensor], top_k: int, known_share: float | None, unknown_score: str) -> Predictions:
        """The `top_k` best classes from batches of features (B, D)."""
        unknown = None if known_share is None else self.unknown(features, known_share, unknown_score)
        probabilities = [self.learner.probabilities(batch).cpu() for batch in features]
        if not probabilities:
            return Predictions([], [], torch.empty(0, 0), unknown)
        best = torch.cat(probabilities).topk(min(top_k, probabilities[0].shape[1]), dim=1)
        return Predictions([[self.class_name(c) for c in row] for row in best.indices.tolist()],
                           [[self.stream.class_order[c] for c in row] for row in best.indices.tolist()], best.values, unknown)

    def unknown(self, features: Sequence[Tensor], known_share: float, score: str = "distance") -> list[bool]:
        """Which of the features, in batches (B, D), are of no known class. Raises UserError."""
        if not 0 < known_share < 1:
            raise UserError(f"known_share (--unknown): got {known_share:g}, allowed: above 0 and below 1, such as 0.95")
        if score not in SCORES:
            raise UserError(f"unknown_score (--unknown_score): got {score!r}, allowed: {', '.join(SCORES)}")
        region = self._regions.get(score) or self.learner.known_region(score)
        if region is None:
            raise UserError(f"known_share (--unknown): a run of {self.learner.config.model_name} keeps no Gaussians of its classes, by "
                            "which unknown images are told; allowed: slca and its kin")
        self._regions[score] = region
        if (score, known_share) not in self._thresholds:
            self._thresholds[score, known_share] = region.threshold(known_share, self.learner.config.torch_seed)
        threshold = self._thresholds[score, known_share]
        return [far for batch in features for far in (region.distances(batch) > threshold).tolist()]

    @property
    def class_names(self) -> list[str]:
        """(K,) names of the classes seen, in the order of the scores."""
        classes = self.stream.label_period or self.stream.classes_upto(self.learner.task)
        return [self.class_name(label) for label in range(classes)]

    def class_name(self, label: int) -> str:
        """Name of a class by its place in the learning order; without the domain's where domains are told apart."""
        name = self.stream.class_names[label]
        return name.split("/", 1)[1] if self.stream.label_period is not None else name

    def inputs(self, images: ImagesIn) -> Tensor:
        """The network's input (N, C, S, S) under the test transform; of a list one image at a time is there in full size."""
        if isinstance(images, (np.ndarray, Tensor)):
            return self.transform(stacked(images), self._draws(len(images)))
        return self._finished([self.cut(image) for image in images])

    def cut(self, image: str | Path | Image.Image | np.ndarray) -> Tensor:
        """One image -> (1, C, S, S): decoded, resized and cropped, not yet normalised. Raises UserError."""
        return self.transform.cut([pixels_of(image)], self._draws(1))

    def _finished(self, images: Sequence[Tensor]) -> Tensor:
        """Images from `cut` -> the network's input (N, C, S, S)."""
        return self.transform.finish(torch.cat(list(images)), self._draws(len(images)))

    def _draws(self, count: int) -> Tensor:
        """Place of the random numbers that a transform may take; a test transform takes none."""
        return torch.zeros(count, self.transform.draws)

    def _features(self, inputs: Tensor) -> Tensor:
        fabric = self.learner.fabric
        with fabric.autocast():
            return self.learner.features(inputs.to(fabric.device)).float()


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
    found = RunFolder.named(Path(run))
    config = resolve_config(parse_config({**found.status().get("config", {}), "device": device}, source=str(found.path / "run.json")))
    if seed is not None and seed not in config.seeds:
        raise UserError(f"seed: got {seed}, allowed: {', '.join(map(str, config.seeds))}, the seeds of {found.path}")
    for number in config.seeds if seed is None else [seed]:
        store = CheckpointStore(found.path / f"seed{number}" / "checkpoints", warn=log.warning)
        checkpoint = store.newest(None if after_task is None else after_task - 1)
        if checkpoint is not None and (after_task is None or checkpoint.task == after_task - 1):
            return restore(config, checkpoint, store.folder)
    raise UserError(f"{found.path} has no checkpoint{'' if after_task is None else f' after task {after_task}'}; train first "
                    "(keep_checkpoints must not be 'none', and 'all' keeps every task's)")


def restore(config: MethodSettings, checkpoint: Checkpoint, where: Path) -> TrainedLearner:
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
    learner.temperature = checkpoint.meta.get("temperature", learner.temperature)
    learner.net.eval()
    return TrainedLearner(learner, data.inputs, config.test_batch_size or config.batch_size)


def stacked(images: np.ndarray | Tensor) -> Tensor:
    """(N, H, W[, C]) array or (N, C, H, W) tensor -> (N, C, H, W) uint8. Raises UserError."""
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.ascontiguousarray(images if images.ndim == 4 else images[..., None])).permute(0, 3, 1, 2)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UserError(f"images: got {images.dtype} of shape {tuple(images.shape)}, allowed: uint8, an array (N, H, W) or (N, H, W, 1 or "
                        "3), or a tensor (N, 1 or 3, H, W)")
    return images


def pixels_of(image: str | Path | Image.Image | np.ndarray) -> Tensor:
    """One image -> (C, H, W) uint8. Raises UserError."""
    if isinstance(image, (str, Path)):
        return torch.from_numpy(read_image(Path(image))).permute(2, 0, 1)
    array = np.array(image.convert("RGB")) if isinstance(image, Image.Image) else np.asarray(image)
    return stacked(array[None])[0]


# Command line --------------------------------------------------------------------------------------------------


def predict_folder(arguments: argparse.Namespace) -> None:
    """Write the best classes of every image as CSV, then print them, one line per image. Raises UserError."""
    if arguments.top < 1:
        raise UserError(f"top_k (--top): got {arguments.top}, allowed: 1 or more")
    files = _images_of(arguments.images)
    trained = load_learner(arguments.run, seed=arguments.seed, after_task=arguments.after_task, device=arguments.device)
    rows: list[dict[str, Any]] = []
    for start in range(0, len(files), trained.batch_size):
        check_stop()
        readable = _cut(trained, files[start:start + trained.batch_size])
        found = trained.predict_cut(list(readable.values()), arguments.top, arguments.unknown, arguments.unknown_score)
        unknown = found.unknown or [None] * len(found.names)
        for file, names, probabilities, far in zip(readable, found.names, found.probabilities.tolist(), unknown, strict=True):
            rows.append({"file": str(file), **{key: value for rank, (name, p) in enumerate(zip(names, probabilities, strict=True), 1)
                                               for key, value in ((f"class_{rank}", name), (f"probability_{rank}", p))},
                         **({} if far is None else {"unknown": int(far)})})
    if not rows:
        raise UserError(f"none of the {len(files)} images under {arguments.images} can be read; see above, nothing was written")
    target, trouble = arguments.csv or _new_file(arguments.run / "predictions.csv"), None
    try:
        write_atomic(target, csv_text(rows))
    except OSError as error:  # the work is shown, at least
        trouble = UserError(f"{target} cannot be written ({error.strerror}); name another place with --csv")
    _print(rows)
    if trouble is not None:
        raise trouble
    show(f"\n{len(rows)} of {len(files)} images: {target}")


def _images_of(place: Path) -> list[Path]:
    """The image files under a folder, or the one that is named. Raises UserError."""
    if not place.exists():
        raise UserError(f"{place} does not exist; name a folder of images, or one image")
    if not place.is_dir():
        return [place]
    files = image_files(place)
    if not files:
        raise UserError(f"{place} holds no image files; name a folder of images (png, jpg, ...)")
    return files


def _cut(trained: TrainedLearner, files: Sequence[Path]) -> dict[Path, Tensor]:
    """The files that can be read, each made small before the next is decoded; the others are named and left out."""
    images = {}
    for file in files:
        try:
            images[file] = trained.cut(file)
        except UserError as error:
            show(f"left out: {error}", error=True)
    return images


def _new_file(path: Path) -> Path:
    """`path`, or with a number if that name is taken: predictions.csv, predictions_2.csv, ..."""
    numbered = (path.with_stem(f"{path.stem}_{number}") for number in itertools.count(2))
    return next(candidate for candidate in itertools.chain([path], numbered) if not os.path.lexists(candidate))


def _print(rows: Sequence[dict[str, Any]]) -> None:
    names = [visible_name(row["file"]) for row in rows]
    width = max(map(len, names))
    for name, row in zip(names, rows, strict=True):
        ranks = range(1, 1 + sum(key.startswith("class_") for key in row))
        doubt = "unknown, most like  " if row.get("unknown") else ""
        best = "  ".join(f"{visible_name(row[f'class_{r}'])} {100 * row[f'probability_{r}']:.1f}%" for r in ranks)
        show(f"{name:{width}}  {doubt}{best}")
