"""Tiny runs on a pretended CUDA device, many in one process: what tests/test_pretend_cuda.py starts.

    python -m tests.pretended_runs NAME ... < CASES      CASES: JSON, name -> settings; the last line printed is JSON, name -> outcome
"""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import trainer
from models.base import BaseLearner
from models.tools.build import make_backbone
from models.tools.build import make_learner as learner_of
from models.tools.export import export
from models.tools.predict import load_learner
from tests import pretend_cuda
from tests.run_files import only_run, tiny_config
from utils.config import MethodSettings
from utils.machine.device import make_fabric
from utils.run.checkpoint import CheckpointStore

STEPS = 3  # of the bare loop; the first one makes momentum's buffers


class Stopped(BaseException):
    """Stands for the machine going down."""


def run(config: MethodSettings, out: Path) -> None:
    trainer.train(config, out, name="run")


def run_and_test(config: MethodSettings, out: Path) -> None:
    """And once more from its checkpoints, as --test_only does."""
    trainer.train(config, out, name="run")
    trainer.test(config, out, name="run")


def run_with_a_stop(config: MethodSettings, out: Path) -> None:
    """Stopped after the second checkpoint, which is inside a task, and resumed."""
    real, saved = CheckpointStore.save, []

    def save(self, *args, **kwargs):
        real(self, *args, **kwargs)
        saved.append(None)
        if len(saved) == 2:
            raise Stopped

    CheckpointStore.save = save
    try:
        trainer.train(config, out, name="run")
    except Stopped:
        trainer.train(config, out, name="run", resume=True)
    finally:
        CheckpointStore.save = real
    assert len(saved) > 2


def predict_and_export(config: MethodSettings, out: Path) -> None:
    """With a learner on the device; the exported program is one for the CPU."""
    trainer.train(config, out, name="run")
    trained = load_learner(only_run(out / "run"), device="cuda")
    size = trained.format.image_size
    images = torch.zeros(3, trained.format.channels, size, size, dtype=torch.uint8)
    assert not trained.predict(images).probabilities.is_cuda
    assert export(trained, out / "model.pt2") <= 1e-4
    scores = torch.export.load(out / "model.pt2").module()(images / 255)[0]  # beside how far each image is from the known classes
    assert scores.shape == (3, trained.stream.classes_upto(trained.learner.task)) and not scores.is_cuda


def beside_a_bare_loop(config: MethodSettings, out: Path) -> None:
    """The phase "bare loop": the least that a step can be, with the same network and batches as "stage 1"."""
    trainer.train(config, out, name="run")
    fabric = make_fabric("cuda", config.precision)
    data = learner_of(config, config.seed, fabric).data
    backbone = make_backbone(config).to(fabric.device).train()
    head = nn.Linear(backbone.dim, data.stream.task_sizes[0]).to(fabric.device)
    optimizer = torch.optim.SGD([*backbone.parameters(), *head.parameters()], lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)
    batches = data.batches("train", 0, batch_size=config.batch_size, augment=True, shuffle_seed=0)
    batches = [fabric.to_device(batch) for batch, _ in zip(batches, range(STEPS), strict=False)]
    with pretend_cuda.phase("bare loop") as counts:
        for images, labels in batches:
            counts.units += 1
            loss = F.cross_entropy(head(backbone(images)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


WAYS: dict[str, Callable[[MethodSettings, Path], None]] = {
    "run": run, "test": run_and_test, "resume": run_with_a_stop, "predict": predict_and_export, "bare": beside_a_bare_loop}


def outcome(settings: dict[str, Any]) -> dict[str, Any]:
    """What the device refused, and every phase's figures; `settings` may name one of WAYS under "way"."""
    pretend_cuda.reset()
    config = tiny_config(**{"device": "cuda", **{key: value for key, value in settings.items() if key != "way"}})
    failed = None
    with tempfile.TemporaryDirectory() as out:
        try:
            with pretend_cuda.Mode():
                WAYS[settings.get("way", "run")](config, Path(out))
        except (Exception, SystemExit):
            failed = traceback.format_exc()
    return {"errors": list(pretend_cuda.errors), "failed": failed,
            "phases": {name: counts.figures() for name, counts in pretend_cuda.phases.items()}}


def own_loss_reads_its_value() -> None:
    """A learner that waits in every step: proof that waits are seen."""
    usual = BaseLearner.training_loss

    def training_loss(self, *args):
        found = usual(self, *args)
        found[0].item()
        return found

    BaseLearner.training_loss = training_loss


def main() -> None:
    trainer.write_report = lambda result, folder: None  # pictures take most of a tiny run's time
    pretend_cuda.believe()
    pretend_cuda.instrument()
    outcomes = {}
    for name, settings in json.load(sys.stdin).items():
        if name == "a loss that waits":
            own_loss_reads_its_value()
        outcomes[name] = outcome(settings)
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
