"""The model that answers, and a queue before it: images that arrive while it computes are computed together next."""

from __future__ import annotations

import logging
import queue
import threading
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from models.serve.uploads import Refused
from models.tools.predict import TrainedLearner
from utils.errors import UserError

log = logging.getLogger("slca.serve")
MOST_WAITING = 1024  # images; those that come then are told to come again


@dataclass(frozen=True)
class Answer:
    """What the model says of one image: its likeliest classes, best first."""

    names: list[str]
    probabilities: list[float]
    unknown: bool | None  # of none of the classes; None where the method cannot tell


class Model:
    """A trained run, ready to answer.

    Args:
        run: its folder.
        known_share: share of the known classes' images that is not called unknown.
    """

    def __init__(self, trained: TrainedLearner, run: Path, known_share: float) -> None:
        self.trained, self.run = trained, run
        self.name = f"{run.parent.name}/{run.name}"
        self.classes = trained.class_names
        self.known_share: float | None = known_share
        size = trained.format.image_size
        blank = trained.cut(np.zeros((size, size, 3), dtype=np.uint8))
        try:  # the first pass makes the threshold, which nobody shall wait for later
            trained.predict_cut([blank], 1, known_share)
        except UserError:
            self.known_share = None

    def answer(self, images: list[Tensor], top: int) -> list[Answer]:
        """Images (1, C, S, S) as `TrainedLearner.cut` makes them, at most a batch of them."""
        found = self.trained.predict_cut(images, top, self.known_share)
        unknown = found.unknown or [None] * len(images)
        return [Answer(*row) for row in zip(found.names, found.probabilities.tolist(), unknown, strict=True)]


class Answering:
    """Answers many who ask at once. One thread computes, so the model is never in two passes at a time."""

    def __init__(self, model: Model) -> None:
        self.model = model  # another one may be put here at any time
        self._waiting: queue.Queue[tuple[Tensor, int, Future[Answer]] | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._work, name="answers", daemon=True)
        self._thread.start()

    def ask(self, image: Tensor, top: int) -> Future[Answer]:
        """The `top` likeliest classes of an image (1, C, S, S). Raises Refused where too many wait."""
        answer: Future[Answer] = Future()
        try:
            self._waiting.put_nowait((image, top, answer))
        except queue.Full:
            raise Refused(503, "too many images are waiting at the moment; send it again in a second") from None
        return answer

    def close(self) -> None:
        """Answer what waits, then stop."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        open_ = True
        while open_:
            asked = [self._waiting.get()]
            model = self.model  # after the wait: another one may have come meanwhile
            with suppress(queue.Empty):
                while len(asked) < model.trained.batch_size:
                    asked.append(self._waiting.get_nowait())
            open_ = None not in asked
            _answer(model, [each for each in asked if each is not None and each[2].set_running_or_notify_cancel()])


def _answer(model: Model, asked: list[tuple[Tensor, int, Future[Answer]]]) -> None:
    if not asked:
        return
    images, tops, futures = zip(*asked, strict=True)
    try:
        answers = model.answer(list(images), max(tops))
    except Exception as error:  # whoever asked is told; the next batch may do better
        log.exception("a batch of %d images could not be computed", len(images))
        for future in futures:
            future.set_exception(error)
        return
    for top, future, answer in zip(tops, futures, answers, strict=True):
        future.set_result(Answer(answer.names[:top], answer.probabilities[:top], answer.unknown))
