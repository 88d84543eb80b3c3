"""Classes that a finished run shall not know any more: `python main.py forget RUN CLASS ...`.

Statistics, rows of the heads, stored images and names of the classes are gone from the new run's checkpoints, and it never answers
with them. A backbone that trained on their images stays as it is: what it learned of them is in all its weights, and only training
again without them would take it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from models.tools.extend import Changed, changed
from models.tools.predict import restore
from utils.config import MethodSettings
from utils.data.added import Learned
from utils.data.data_manager import DataManager
from utils.data.labels import class_labels
from utils.data.notes import some
from utils.data.stream import StoredData
from utils.errors import UserError
from utils.run.checkpoint import Checkpoint


def forgetting(run: Path, names: Sequence[str], device: str | None = None) -> Changed:
    """Config, parent and change for `trainer.train`, which writes a run that does not know the classes `names`.

    Raises:
        UserError: there is no such finished run.
    """
    return changed(run, device, lambda config, checkpoint, where: without_classes(config, checkpoint, names, where))


def without_classes(config: MethodSettings, checkpoint: Checkpoint, names: Sequence[str], where: Path) -> Checkpoint:
    """The checkpoint with nothing left of the classes `names`.

    Raises:
        UserError: a name that is no class, no class would be left, or what the method keeps cannot be told apart by classes.
    """
    trained = restore(config, checkpoint, where)
    learner, stream = trained.learner, trained.stream
    if stream.label_period is not None:
        raise UserError("forget: a run of the domain scenario has every class once per domain; allowed: a run of classes in tasks")
    labels = class_labels(names, stream.class_names, "forget")
    unknown = [name for name, label in zip(names, labels, strict=True) if not 0 <= label < stream.num_classes]
    if unknown:
        raise UserError(f"forget: {unknown[0]!r} is no class of {where}, allowed: {some(stream.class_names)}")
    if len(set(labels)) == stream.num_classes:
        raise UserError("forget: that is every class of the run, so nothing would be left; remove the run's folder instead")
    if not learner.rehearsal_free:  # which of the stored images are of the classes
        learner.data = DataManager(config, checkpoint.meta["seed"], learned=Learned.of(checkpoint.meta, extended=False), old_images=True)
    learner.forget(set(labels))
    gone = {stream.class_names[label] for label in labels}
    fingerprint = {split: {name: entry for name, entry in entries.items() if name not in gone}
                   for split, entries in checkpoint.meta["fingerprint"].items()}
    meta = {**checkpoint.meta, "fingerprint": fingerprint, "data": StoredData(learner.stream, trained.format).to_json()}
    return replace(checkpoint, weights=learner.network_state(), state=learner.extra_state(), meta=meta)
