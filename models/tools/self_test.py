"""The doctor's self-test: a tiny SLCA run on made images, cut into one step, one alignment and one resume."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.registry import resolve_config
from models.session import Session
from utils.config import MethodSettings, parse_config
from utils.files import PROJECT
from utils.json_files import read_json
from utils.machine.device import make_fabric

SEED = 0
IMAGES = {"name": "doctor", "layout": "synthetic", "num_classes": 4, "image_size": 28, "channels": 1, "train_per_class": 8,
          "test_per_class": 4, "train_transform": "none"}
SETTINGS: dict[str, Any] = {"model_name": "slca", "dataset": IMAGES, "init_cls": 2, "increment": 2, "epochs": 1, "batch_size": 16,
                            "ca_epochs": 1, "ca_samples": 16, "num_workers": 0, "seed": SEED}
CLOSE = 1e-3  # to which a GPU repeats itself; the CPU does it bit for bit


class SelfTest:
    """Two tasks in a temporary folder; `step`, `alignment`, `resume` are called in this order, inside `with`.

    Each returns what it measured, in words, and raises AssertionError or whatever fails.
    """

    def __init__(self, device: str) -> None:
        self.config = settings(device)
        self.fabric = make_fabric(self.config.device, self.config.precision)
        self._folder = tempfile.TemporaryDirectory(prefix="slca_doctor_")
        self.whole: Session | None = None

    def __enter__(self) -> SelfTest:
        return self

    def __exit__(self, *_: object) -> None:
        self.whole = None
        self._folder.cleanup()

    def step(self) -> str:
        """The first task: one epoch of SGD, statistics, evaluation, a checkpoint."""
        started = time.perf_counter()
        self.whole = self._session()
        before = _backbone(self.whole)
        learn(self.whole, 0)
        self.whole.store.wait()
        moved = any(not torch.equal(before[name], tensor) for name, tensor in _backbone(self.whole).items())
        assert moved, "no weight of the backbone moved"
        return f"{self.whole.monitor.trained_images} images on {self.fabric.device}, {time.perf_counter() - started:.1f} s with loading"

    def alignment(self) -> str:
        """The second task, which ends with Classifier Alignment."""
        assert self.whole is not None, "the first task did not end"
        learn(self.whole, 1)
        before = self.whole.learner.classifier_before_alignment()
        assert before is not None, "the heads were not aligned"
        assert all(tensor.isfinite().all() for tensor in self.whole.net.heads.state_dict().values()), "a head is not finite"
        return f"{self.whole.monitor.seconds['alignment']:.2f} s for {self.whole.data.stream.num_classes} classes"

    def resume(self) -> str:
        """The second task once more, from the checkpoint after the first one: the same weights."""
        assert self.whole is not None and self.whole.learner.task == 1, "the second task did not end"
        again = self._session()
        again.resume()
        assert again.first_task == 1, "no checkpoint of the first task was found"
        learn(again, 1)
        other = again.learner.network_state()
        on_cpu = self.fabric.device.type == "cpu"
        for name, tensor in self.whole.learner.network_state().items():
            same = torch.equal(tensor, other[name]) if on_cpu else torch.allclose(tensor, other[name], atol=CLOSE)
            assert same, f"{name} is another one than without the interruption"
        return "the same weights as without an interruption" + (", bit for bit" if on_cpu else f", to {CLOSE:g}")

    def _session(self) -> Session:
        return Session(self.config, SEED, self.fabric, Path(self._folder.name))


def learn(session: Session, task: int) -> None:
    """Learn and evaluate one task as a run does; after the first one a checkpoint is written."""
    session.learner.learn_task(task, session.monitor)
    session.record(session.measure(task))
    if task == 0:
        session.save(task)


def settings(device: str) -> MethodSettings:
    """The demo's backbone with its weights, or random ones where these are gone."""
    backbone = read_json(PROJECT / "exps" / "slca_demo.json")["convnet_type"]
    there = (PROJECT / backbone["weights"]).is_file()
    return resolve_config(parse_config({**SETTINGS, "convnet_type": backbone, "pretrained": there, "device": device}, source="doctor"))


def _backbone(session: Session) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in session.net.backbone.named_parameters()}
