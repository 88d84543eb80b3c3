"""What the server does, without HTTP: a model that answers, its classes' examples, and learning new classes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from models.serve.answers import Answering, Model
from models.serve.collection import Collection
from models.serve.examples import find_examples, picture
from models.serve.learning import Learning, child_of
from models.serve.uploads import Limits, Refused, Upload, class_folder_name, decode
from utils.errors import UserError

NOT_ALLOWED = "this server does not collect images; start it with --collect FOLDER to teach it new classes"


class Service:
    """Everything behind the routes of models/serve/app.py.

    Args:
        model: that answers until another one has been learned.
        limits: of one request.
        collection: where images of new classes go; None: they are refused.
        load: run's folder -> the model to answer with next.
        extending: options of `main.py extend` behind the run and its data.
    """

    def __init__(self, model: Model, limits: Limits, collection: Collection | None = None, load: Callable[[Path], Model] | None = None,
                 extending: Sequence[str] = ()) -> None:
        self.answering, self.limits, self.collection = Answering(model), limits, collection
        self.learning = Learning()
        self._load, self._extending = load, list(extending)
        self._examples: tuple[Model, list[list[Path | np.ndarray]]] | None = None  # of the model that was last asked about
        self._lock, self._learn_lock = threading.Lock(), threading.Lock()

    @property
    def model(self) -> Model:
        return self.answering.model

    def close(self) -> None:
        self.learning.stop()
        self.answering.close()

    def cut(self, upload: Upload) -> Tensor:
        """An upload as the network takes it, not yet normalised, (1, C, S, S). Raises Refused."""
        return self.model.trained.cut(decode(upload, self.limits).pixels)

    def health(self) -> dict[str, Any]:
        learner = self.model.trained.learner
        return {"status": "ok", "model": self.model.name, "method": learner.title_of(learner.config), "classes": len(self.model.classes),
                "device": learner.fabric.device.type, "learning": self.learning.state}

    def classes(self) -> dict[str, Any]:
        """The classes in the order of their numbers, with how many examples `example` has of each."""
        model, examples = self._with_examples()
        return {"model": model.name, "known_share": model.known_share,
                "classes": [{"name": name, "examples": len(found)} for name, found in zip(model.classes, examples, strict=True)]}

    def example(self, number: int, which: int) -> bytes:
        """A small PNG of a training image of class `number`. Raises Refused: there is none."""
        _, examples = self._with_examples()
        if not (0 <= number < len(examples) and 0 <= which < len(examples[number])):
            raise Refused(404, "there is no such example image")
        try:
            return picture(examples[number][which])
        except UserError:
            raise Refused(404, "this example image is gone or damaged") from None

    def collect(self, name: str, uploads: Sequence[Upload]) -> dict[str, Any]:
        """Keep images of a new class. Raises Refused."""
        collection = self._collection()
        name = class_folder_name(name)
        files = [(upload.data, decode(upload, self.limits).suffix) for upload in uploads]  # all are looked at before one is written
        try:
            collection.add(name, files, self.model.classes)
        except OSError as error:
            raise Refused(507, f"the images cannot be stored ({error.strerror or error})") from None
        return self.lessons()

    def learn(self) -> dict[str, Any]:
        """Start to learn the classes that wait. Raises Refused."""
        collection = self._collection()
        with self._learn_lock:
            if self.learning.running:
                raise Refused(409, "the model is learning already; wait until that is done")
            place, parent = collection.hand_over(self.model.classes), self.model.run

            def done() -> None:
                self.answering.model = self._load(child_of(parent))

            self.learning.start(["extend", str(parent), "--data", str(place), *self._extending], done, lambda: collection.take_back(place))
        return self.lessons()

    def lessons(self) -> dict[str, Any]:
        """What waits to be learned, and how learning goes."""
        waiting = {} if self.collection is None else self.collection.counts()
        return {"model": self.model.name, "waiting": waiting, **self.learning.status()}

    def _collection(self) -> Collection:
        if self.collection is None:
            raise Refused(403, NOT_ALLOWED)
        return self.collection

    def _with_examples(self) -> tuple[Model, list[list[Path | np.ndarray]]]:
        """The model and the examples of each of its classes; looked for when first asked, since a large data set takes seconds."""
        with self._lock:
            model = self.model
            if self._examples is None or self._examples[0] is not model:
                found = find_examples(model.trained.learner.config)
                self._examples = model, [found.get(name, []) for name in model.classes]
            return self._examples
