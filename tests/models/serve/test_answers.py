"""Many who ask at once: who gets which answer, and how many passes that takes."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from models.serve import answers
from models.serve.answers import Answer, Answering
from models.serve.uploads import Refused


class Slow:
    """Stands in for a model: waits before its first pass, and answers with the image's own number."""

    def __init__(self) -> None:
        self.trained = type("Trained", (), {"batch_size": 4})
        self.started, self.go, self.passes = threading.Event(), threading.Event(), []

    def answer(self, images, top):
        self.started.set()
        assert self.go.wait(30)
        self.passes.append(len(images))
        if any(image.item() < 0 for image in images):
            raise RuntimeError("no such number")
        return [Answer([str(int(image))] * top, [1.0] * top, None) for image in images]


def test_images_that_come_while_the_model_computes_are_computed_together_next():
    model = Slow()
    answering = Answering(model)
    asked = [answering.ask(torch.tensor(0), 1)]
    assert model.started.wait(30)
    asked += [answering.ask(torch.tensor(number), 1 + number % 3) for number in range(1, 10)]
    model.go.set()
    found = [future.result(30) for future in asked]
    assert [answer.names for answer in found] == [[str(number)] * (1 + number % 3) for number in range(10)]
    assert model.passes == [1, 4, 4, 1]
    answering.close()


def test_who_asks_too_much_is_told_to_come_again_and_a_failure_stops_nobody_else(monkeypatch):
    monkeypatch.setattr(answers, "MOST_WAITING", 2)
    model = Slow()
    answering = Answering(model)
    broken = answering.ask(torch.tensor(-1), 1)
    assert model.started.wait(30)
    later = [answering.ask(torch.tensor(number), 1) for number in range(2)]
    with pytest.raises(Refused, match="too many images are waiting"):
        answering.ask(torch.tensor(5), 1)
    model.go.set()
    with pytest.raises(RuntimeError, match="no such number"):
        broken.result(30)
    assert [future.result(30).names for future in later] == [["0"], ["1"]]
    answering.close()


def test_the_first_image_after_another_model_came_is_answered_by_that_one():
    old, new = Slow(), Slow()
    old.go.set()
    new.go.set()
    answering = Answering(old)
    answering.ask(torch.tensor(1), 1).result(30)
    time.sleep(0.05)  # the thread waits for images again
    answering.model = new
    answering.ask(torch.tensor(2), 1).result(30)
    assert (old.passes, new.passes) == ([1], [1])
    answering.close()
