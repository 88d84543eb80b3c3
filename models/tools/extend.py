"""One task more for a finished run: `python main.py extend RUN --data FOLDER`. What is learned then is trainer.py's as ever.

The new run's config is the old one's with one more entry under `added`, so it says by itself what the model has seen; run.json names
the parent. Training the same config from the beginning gives the same bits on a CPU, where the old images are still there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from models.registry import learner_class, resolve_config
from utils.config import MethodSettings, parse_config
from utils.data.places import home_expanded
from utils.errors import UserError
from utils.overrides import with_overrides
from utils.run.checkpoint import Checkpoint
from utils.run.parent import Parent
from utils.run.run_folder import RunFolder

Changed = tuple[MethodSettings, Parent, Callable[[Checkpoint], Checkpoint]]

# Settings that what was learned depends on: another value would not change a task, but spoil it.
FIXED = ("model_name", "torch_seed", "dataset", "added", "scenario", "all_at_once", "tasks", "task_sizes", "init_cls", "increment",
         "shuffle", "class_order", "few_shot", "long_tail", "blurry", "domains_per_task", "normalize", "test_transform",
         "convnet_type", "pretrained", "reset_norm", "pool", "features", "views", "ca_cov")


def extended(run: Path, data: str, test: str | None = None, overrides: Mapping[str, Any] | None = None) -> tuple[MethodSettings, Parent]:
    """The config that learns the classes under `data` after those of `run`, and the parent that it starts from; for `trainer.train`.

    Args:
        run: a finished run's folder, or an experiment's (its newest finished run).
        data: a folder with one sub-folder per new class, an npz file, or a list file; domain scenario: images of the same classes
            in a new domain, which is called after the folder.
        test: test images of the same classes: a folder, or for a list file another one.
        overrides: settings of the new task, as `--set` has them.

    Raises:
        UserError: there is no such run, its method cannot learn a task more, or a setting must stay as it was.
    """
    found = RunFolder.finished_run(run)
    before = parent_config(found)
    overrides = dict(overrides or {})
    method = learner_class(before.model_name)
    if method.not_extended:
        raise UserError(f"{found.path}: a run of {before.model_name} cannot be extended, because {method.not_extended}")
    if before.all_at_once:
        raise UserError(f"{found.path} learned all classes at once; only a run that learned task by task can be extended by one more")
    settings = before.model_dump(mode="json")
    values = with_overrides(settings, overrides)
    for key in FIXED:
        if key in values and values[key] != settings.get(key):
            raise UserError(f"--set {key}: it was {settings.get(key)!r} when {found.path} learned, and cannot change for a task more; "
                            "allowed: settings of training (epochs, lr, batch_size, ca_epochs, ...) and of the machine")
    task = {"train": str(_absolute(data)), "test": None if test is None else str(_absolute(test))}
    values["added"] = [*(values.get("added") or []), task]
    config = resolve_config(parse_config(values, source=str(found.path / "run.json")))
    unknown = sorted(set(config.seeds) - set(before.seeds))
    if unknown:
        raise UserError(f"--set seed: {found.path} has no seed {unknown[0]}, allowed: {', '.join(map(str, before.seeds))}")
    return config, Parent.of(found, config.seeds)


def changed(run: Path, device: str | None, change: Callable[[MethodSettings, Checkpoint, Path], Checkpoint]) -> Changed:
    """What `trainer.train` takes to write a run of the checkpoints of `run`, each after `change(config, checkpoint, run's folder)`.

    Raises:
        UserError: there is no such finished run.
    """
    found = RunFolder.finished_run(run)
    config = parent_config(found)
    if device is not None:
        config = config.model_copy(update={"device": device})
    return config, Parent.of(found, config.seeds), lambda checkpoint: change(config, checkpoint, found.path)


def parent_config(run: RunFolder) -> MethodSettings:
    """The resolved settings of a run. Raises UserError where run.json does not hold them."""
    return resolve_config(parse_config(run.status().get("config", {}), source=str(run.path / "run.json")))


def _absolute(place: str) -> Path:
    return Path(os.path.realpath(home_expanded(place)))  # unlike resolve(), of a loop of links too
