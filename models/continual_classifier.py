"""A classifier that goes on learning, with scikit-learn's conventions.

    from models.inference import ContinualClassifier
    model = ContinualClassifier("logs/slca_demo")           # a finished run; or a config, which starts from nothing
    model.partial_fit(images, labels)                       # new class names are a new task, known ones are refined
    model.predict(images); model.predict_proba(images); model.classes_; model.save("my_model")

Images are one array (N, H, W[, C]) uint8, or a list of arrays, PIL images and paths. What is learned is a run like any other
(`main.py extend`), in a folder that ends with the object, or in `folder`; images are kept there only as long as they are learned from.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import NotFittedError

from models.registry import resolve_config
from models.tools.extend import extended
from models.tools.predict import ImagesIn, TrainedLearner, load_learner
from models.tools.update import updating
from trainer import train
from utils.config import Config, parse_config
from utils.errors import UserError
from utils.images.store import read_image
from utils.run.run_folder import RunFolder
from utils.terminal import quiet_terminal


class ContinualClassifier(ClassifierMixin, BaseEstimator):
    """A learner as an estimator.

    Args:
        model: folder of a finished run (or of an experiment), or a config from `load_config`, whose own data play no part.
        seed: which of its seeds; default the first.
        device: as the setting `device`.
        folder: where what is learned is written; default a folder that goes with the object.

    Attributes:
        classes_: (K,) names of the classes known, sorted; labels that were given as numbers stay numbers.
    """

    def __init__(self, model: str | Path | Config, *, seed: int | None = None, device: str = "auto",
                 folder: str | Path | None = None) -> None:
        self.model, self.seed, self.device, self.folder = model, seed, device, folder

    def fit(self, images: ImagesIn, labels: Sequence[Hashable]) -> ContinualClassifier:
        """Start from `model` as it was, and learn the images."""
        for name in ("run_", "trained_", "labels_"):
            self.__dict__.pop(name, None)
        return self.partial_fit(images, labels)

    def partial_fit(self, images: ImagesIn, labels: Sequence[Hashable]) -> ContinualClassifier:
        """Learn the images' new classes as one task, without any old image; refine known classes (methods with Gaussians).

        Raises:
            UserError: an image cannot be read, a label cannot be a class's name, or the method cannot learn a task more.
        """
        labels = np.asarray(labels).tolist()
        if len(images) != len(labels) or not labels:
            raise UserError(f"partial_fit: got {len(images)} images and {len(labels)} labels; allowed: as many of both, at least one")
        self._open()
        known = set() if self.trained_ is None else set(self.trained_.stream.class_names)
        for update in (False, True):
            chosen = [i for i, label in enumerate(labels) if (str(label) in known) == update]
            if chosen:
                with tempfile.TemporaryDirectory(dir=self._home) as place, quiet_terminal():
                    self._write_images(Path(place), [images[i] for i in chosen], [labels[i] for i in chosen])
                    self._learn(Path(place), update)
        self.labels_ |= {str(label): label for label in labels}
        return self

    def predict(self, images: ImagesIn) -> np.ndarray:
        """(N,) the likeliest class of each image."""
        return self.classes_[self.predict_proba(images).argmax(axis=1)]

    def predict_proba(self, images: ImagesIn) -> np.ndarray:
        """(N, K) probabilities, columns as in `classes_`."""
        names = self._fitted().stream.class_names
        found = self._fitted().predict(images, len(names))
        columns = {str(label): column for column, label in enumerate(self.classes_.tolist())}
        probabilities = np.zeros((len(images), len(names)))
        for row, (best, values) in enumerate(zip(found.names, found.probabilities.tolist(), strict=True)):
            probabilities[row, [columns[name] for name in best]] = values
        return probabilities

    @property
    def classes_(self) -> np.ndarray:
        labels = [self.labels_.get(name, name) for name in self._fitted().stream.class_names]
        return np.array(sorted(labels, key=lambda label: (isinstance(label, str), label)))

    def save(self, folder: str | Path) -> Path:
        """Copy the run to `folder`, which `ContinualClassifier(folder)`, `load_learner` and every command take. Raises UserError."""
        self._fitted()
        assert self.run_ is not None, "fitted, so a run is there"
        if Path(folder).exists():
            raise UserError(f"{folder} exists already; name a folder that does not")
        return Path(shutil.copytree(self.run_, folder, ignore=shutil.ignore_patterns(".lock")))

    # Private -------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Load `model`, once; a config has nothing to load."""
        if not hasattr(self, "trained_"):
            self.labels_: dict[str, Hashable] = {}  # class name -> label as it was given
            home = self.folder
            if home is None:
                self._temporary = tempfile.TemporaryDirectory()  # removed with the object
                home = self._temporary.name
            self._home = Path(home)
            self._home.mkdir(parents=True, exist_ok=True)
            self.run_: Path | None = None if isinstance(self.model, Config) else RunFolder.finished_run(Path(self.model)).path
            self.trained_: TrainedLearner | None = None if self.run_ is None else self._load(self.run_)

    @property
    def _config(self) -> Config:
        assert isinstance(self.model, Config), "a run goes on with its own config"
        return self.model

    def _load(self, run: Path) -> TrainedLearner:
        return load_learner(run, seed=self.seed, device=self.device)

    def _fitted(self) -> TrainedLearner:
        self._open()
        if self.trained_ is None:
            raise NotFittedError("this ContinualClassifier knows no class yet; call partial_fit with images and labels")
        return self.trained_

    def _learn(self, place: Path, update: bool) -> None:
        """A new run from the images in `place`, which goes on from the one before."""
        parent = edit = None
        if self.run_ is None:
            settings = {**self._config.model_dump(mode="json", exclude_unset=True), "device": self.device, "tasks": None,
                        "task_sizes": None, "dataset": self._dataset(place), "init_cls": sum(1 for _ in place.iterdir()), "increment": 0,
                        "seed": self._config.seeds[0] if self.seed is None else self.seed}
            config = resolve_config(parse_config(settings, source="ContinualClassifier"))
        elif update:
            config, parent, edit = updating(self.run_, place, self.device)
        else:
            chosen = {} if self.seed is None else {"seed": self.seed}
            config, parent = extended(self.run_, str(place), overrides={"device": self.device, **chosen})
        train(config, self._home, name="continual", parent=parent, edit=edit)
        self.run_ = RunFolder.finished_run(self._home / "continual").path
        self.trained_ = self._load(self.run_)

    def _dataset(self, place: Path) -> dict[str, object]:
        """The config's data set as a description, with the images in `place` instead of its own."""
        given = self._config.model_dump(mode="json", exclude_unset=True).get("dataset")
        of_images = ("image_size", "mean", "std", "train_transform")
        kept = {key: given[key] for key in of_images if key in given} if isinstance(given, dict) else {}
        return {"name": "images", "layout": "training", "root": str(place), **kept}

    def _write_images(self, place: Path, images: Sequence[object], labels: Sequence[Hashable]) -> None:
        """The images as PNG files, one sub-folder per class. Raises UserError."""
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            name = str(label)
            if not name.strip() or name.startswith(".") or {"/", "\\", "\0"} & set(name):
                raise UserError(f"labels: got {name!r}, allowed: what can name a folder")
            pixels = read_image(Path(image)) if isinstance(image, (str, Path)) else image
            picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels).squeeze())
            (place / name).mkdir(exist_ok=True)
            picture.convert("RGB").save(place / name / f"{number:06d}.png")
