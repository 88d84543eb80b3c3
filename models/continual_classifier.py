"""A classifier that goes on learning, with scikit-learn's conventions.

    from models.inference import ContinualClassifier
    model = ContinualClassifier("logs/slca_demo")           # a finished run; or a config, which starts from nothing
    model.partial_fit(images, labels)                       # new class names are a new task, known ones are refined
    model.predict(images); model.predict_proba(images); model.classes_; model.save("my_model")

Images are one array (N, H, W[, C]) uint8, or a list of arrays, PIL images and paths. What is learned is a run like any other
(`main.py extend`), in a folder that ends with the object, or in `folder`; images are kept there only as long as they are learned from.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import NotFittedError
from torch import Tensor

from models.registry import resolve_config
from models.tools.extend import extended
from models.tools.predict import ImagesIn, TrainedLearner, load_learner, pixels_of, stacked
from models.tools.update import updating
from trainer import train
from utils.config import Config, parse_config
from utils.data.registry import dataset_info
from utils.errors import UserError
from utils.run.run_folder import RunFolder
from utils.terminal import quiet_terminal

if TYPE_CHECKING:
    from sklearn.utils import Tags  # of scikit-learn 1.6 on, which alone asks for them

RGB = 3  # channels
LOGS = [logging.getLogger(name) for name in ("slca", "slca.data")]


class WrongInput(UserError, ValueError):
    """Images or labels that cannot be learned from; a ValueError too, as scikit-learn's tools expect."""


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

    def fit(self, X: ImagesIn, y: Sequence[Hashable]) -> ContinualClassifier:
        """Start from `model` as it was, and learn the images X with their labels y."""
        for name in ("run_", "trained_", "labels_"):
            self.__dict__.pop(name, None)
        return self.partial_fit(X, y)

    def partial_fit(self, X: ImagesIn, y: Sequence[Hashable], classes: Sequence[Hashable] | None = None) -> ContinualClassifier:
        """Learn the images' new classes as one task, without any old image; refine known classes (methods with Gaussians).

        Args:
            X: N images; y: (N,) their labels, text or whole numbers.
            classes: where given, every label must be one of them; it need not be given, since a class that comes is a class.

        Raises:
            UserError: an image cannot be read, a label cannot be a class's name, or the method cannot learn a task more.
        """
        images: Sequence[Any] | np.ndarray = list(stacked(X).permute(0, 2, 3, 1).numpy()) if isinstance(X, Tensor) else X
        labels = checked_labels(images, y, classes)
        self._open()
        known = set() if self.trained_ is None else set(self.trained_.stream.class_names)
        self.labels_ |= {str(label): label for label in labels}
        for update in (False, True):
            chosen = [i for i, label in enumerate(labels) if (str(label) in known) == update]
            if chosen:
                with tempfile.TemporaryDirectory(dir=self._home) as place, quiet_terminal():
                    self._write_images(Path(place), [images[i] for i in chosen], [labels[i] for i in chosen])
                    self._learn(Path(place), update)
        return self

    def predict(self, X: ImagesIn) -> np.ndarray:
        """(N,) the likeliest class of each image."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def predict_proba(self, X: ImagesIn) -> np.ndarray:
        """(N, K) probabilities, columns as in `classes_`."""
        columns = {name: column for column, (name, _) in enumerate(self._sorted_classes())}
        found = self._fitted().predict(X, len(columns))
        probabilities = np.zeros((len(X), len(columns)))
        for row, (best, values) in enumerate(zip(found.names, found.probabilities.tolist(), strict=True)):
            probabilities[row, [columns[name] for name in best]] = values
        return probabilities / probabilities.sum(axis=1, keepdims=True)  # 1 in float64 too

    @property
    def classes_(self) -> np.ndarray:
        return np.array([label for _, label in self._sorted_classes()])

    def __sklearn_is_fitted__(self) -> bool:
        self._open()
        return self.trained_ is not None

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        tags.no_validation = True  # of tables; images have checks of their own
        return tags

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

    def _sorted_classes(self) -> list[tuple[str, Any]]:
        """Name and label, as it was given, of each class known: numbers first, each kind sorted."""
        classes = [(name, self.labels_.get(name, name)) for name in self._fitted().stream.class_names]
        return sorted(classes, key=lambda each: (isinstance(each[1], str), each[1]))

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
            settings = {**self._config.model_dump(mode="json", exclude_unset=True), "device": self.device,
                        "tasks": None, "task_sizes": None, "init_cls": sum(1 for _ in place.iterdir()), "increment": 0,
                        "seed": self._config.seeds[0] if self.seed is None else self.seed}
            config = resolve_config(parse_config({**settings, **self._images_as_configured(place)}, source="ContinualClassifier"))
        elif update:
            config, parent, edit = updating(self.run_, place, self.device)
        else:
            chosen = {} if self.seed is None else {"seed": self.seed}
            config, parent = extended(self.run_, str(place), overrides={"device": self.device, **chosen})
        with no_word_of_tests():
            train(config, self._home, name="continual", parent=parent, edit=edit)
        self.run_ = RunFolder.finished_run(self._home / "continual").path
        self.trained_ = self._load(self.run_)

    def _images_as_configured(self, place: Path) -> dict[str, object]:
        """Settings with which the images in `place` become input as those of the config's own data set would."""
        info = dataset_info(self._config.dataset)
        of_rgb = {key: [*value] if len(value) == RGB else [value[0]] * RGB for key, value in (("mean", info.mean), ("std", info.std))}
        dataset = {"name": "images", "layout": "training", "root": str(place), "image_size": info.image_size,
                   "train_transform": "none" if info.train_transform == info.test_transform else info.train_transform, **of_rgb}
        return {"dataset": dataset, "test_transform": self._config.test_transform or info.test_transform, "added": None}

    def _write_images(self, place: Path, images: Sequence[Any] | np.ndarray, labels: Sequence[Hashable]) -> None:
        """The images as PNG files, one sub-folder per class. Raises UserError."""
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            pixels = pixels_of(image).permute(1, 2, 0).numpy()
            (place / str(label)).mkdir(exist_ok=True)
            picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
            picture.convert("RGB").save(place / str(label) / f"{number:06d}.png")


@contextmanager
def no_word_of_tests() -> Iterator[None]:
    """Inside, nothing is told of missing test images: here there never are any."""
    def worth_telling(record: logging.LogRecord) -> bool:
        return "test image" not in record.getMessage()

    for log in LOGS:
        log.addFilter(worth_telling)
    try:
        yield
    finally:
        for log in LOGS:
            log.removeFilter(worth_telling)


def checked_labels(images: Sequence[Any] | np.ndarray, labels: Sequence[Hashable],
                   classes: Sequence[Hashable] | None = None) -> list[Hashable]:
    """The labels as Python's own text and numbers.

    Raises:
        WrongInput: there are not as many as images, one cannot be a class's name, or is none of `classes`.
    """
    given = np.asarray(labels)
    if given.ndim != 1 or len(images) != len(given) or not len(given):
        raise WrongInput(f"partial_fit: got {len(images)} images and {given.size} labels of shape {given.shape}; allowed: one label for "
                         "each image, at least one image")
    allowed = None if classes is None else set(np.asarray(classes).tolist())
    found = given.tolist()
    for label in found:
        name = str(label)
        if not isinstance(label, (str, int)) and not (isinstance(label, float) and label.is_integer()):
            raise WrongInput(f"labels: got {label!r}, Unknown label type: allowed are text and whole numbers")
        if not name.strip() or name.startswith(".") or {"/", "\\", "\0"} & set(name):
            raise WrongInput(f"labels: got {name!r}, allowed: what can name a folder")
        if allowed is not None and label not in allowed:
            raise WrongInput(f"labels: got {label!r}, which is none of `classes`; name it there, or leave `classes` out")
    return found
