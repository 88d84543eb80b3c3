"""More images of classes that a finished run knows: `python main.py extend RUN --data FOLDER --update`. Needs no old image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from models.tools.extend import Changed, changed
from models.tools.predict import TrainedLearner, restore
from utils.config import MethodSettings
from utils.data.folders import read_class_folders
from utils.data.notes import some
from utils.errors import UserError
from utils.images.store import read_image
from utils.run.checkpoint import Checkpoint
from utils.run.monitor import Monitor


def updating(run: Path, data: Path, device: str | None = None) -> Changed:
    """Config, parent and change for `trainer.train`, which writes a run whose classes under `data` also know the images there.

    Raises:
        UserError: there is no such finished run.
    """
    return changed(run, device, lambda config, checkpoint, where: with_images(config, checkpoint, data, where))


def with_images(config: MethodSettings, checkpoint: Checkpoint, data: Path, where: Path) -> Checkpoint:
    """The checkpoint with the images under `data`, one sub-folder per known class, taken into the classes' statistics.

    Raises:
        UserError: a class is new, an image cannot be read, or the method keeps too little of its old images.
    """
    without_tests = {"ca_eval": False} if "ca_eval" in type(config).model_fields else {}  # there are no test images here
    trained = restore(config.model_copy(update=without_tests), checkpoint, where)
    images, names = read_class_folders(data)
    known = {name: label for label, name in enumerate(trained.stream.class_names)}
    unknown = [name for name in names if name not in known]
    if unknown or trained.stream.label_period is not None:
        raise UserError(f"--update refines classes of tasks that the model knows; {data} holds {some(unknown or names)}. Learn new classes "
                        "without --update, from a folder of their own")
    labels = torch.tensor([known[names[own]] for own in images.labels], device=trained.learner.fabric.device)
    trained.learner.refine(features_of(trained, list(images.images)), labels, Monitor())
    return replace(checkpoint, weights=trained.learner.network_state(), state=trained.learner.extra_state())


@torch.no_grad()
def features_of(trained: TrainedLearner, files: list[Path]) -> torch.Tensor:
    """(N, D) features of image files under the test transform."""
    learner, found = trained.learner, []
    for start in range(0, len(files), trained.batch_size):
        images = [read_image(file) for file in files[start:start + trained.batch_size]]
        one_size = len({image.shape for image in images}) == 1  # resized together, as in training (utils/images/transforms.py)
        inputs = trained.inputs(np.stack(images) if one_size else images)
        with learner.fabric.autocast():
            found.append(learner.features(inputs.to(learner.fabric.device)).float())
    return torch.cat(found)
