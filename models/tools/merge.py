"""Two finished runs as one: `python main.py merge RUN_A RUN_B`, where that is exact.

Several sites may learn apart on the same frozen backbone, and share statistics but never images: class means, scatter matrices and
Gaussians are facts of their classes' images alone, so that those of two runs side by side are those of one run over both.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import torch

from models.tools.extend import Changed, parent_config
from models.tools.predict import restore
from utils.config import MethodSettings
from utils.data.notes import some
from utils.data.stream import StoredData
from utils.errors import UserError
from utils.run.checkpoint import Checkpoint
from utils.run.figures import Figures
from utils.run.parent import Parent
from utils.run.run_folder import NEUTRAL_KEYS, RunFolder

# Settings that may differ: which images the classes came from, and how a head trained that plays no part.
OF_ONE_RUN = NEUTRAL_KEYS | {"dataset", "added", "tasks", "task_sizes", "init_cls", "increment", "shuffle", "seed", "epochs", "lr",
                             "batch_size", "deterministic"}


def merging(run: Path, other: Path, device: str | None = None) -> Changed:
    """Config, parent and change for `trainer.train`, which writes a run that knows the classes of both, those of `run` first.

    Seeds are matched by number.

    Raises:
        UserError: a run is not there, they differ in more than their images, or they have no seed in common.
    """
    found = [RunFolder.finished_run(place) for place in (run, other)]
    configs = [parent_config(place) for place in found]
    settings = [config.model_dump(mode="json") for config in configs]
    differing = [key for key in settings[0] if key not in OF_ONE_RUN and settings[0][key] != settings[1].get(key)]
    if differing:
        key = differing[0]
        raise UserError(f"merge: {key} is {settings[0][key]!r} in {found[0].path} and {settings[1].get(key)!r} in {found[1].path}; only "
                        "runs of one method on one backbone can become one")
    seeds = [seed for seed in configs[0].seeds if seed in configs[1].seeds]
    if not seeds:
        raise UserError(f"merge: {found[0].path} has the seeds {some(configs[0].seeds)}, {found[1].path} {some(configs[1].seeds)}; "
                        "allowed: at least one in common")
    config = configs[0].model_copy(update={"seed": seeds, **({} if device is None else {"device": device})})
    parent, second = (Parent.of(place, seeds) for place in found)
    return config, replace(parent, merged=second), lambda checkpoint: joined(config, checkpoint, second)


def joined(config: MethodSettings, checkpoint: Checkpoint, second: Parent) -> Checkpoint:
    """The checkpoint with the classes of the same seed's in `second` behind its own.

    Raises:
        UserError: a class is in both, the backbones or image formats are different, or the method's classes depend on one another.
    """
    other = second.checkpoint(checkpoint.meta["seed"])
    one, two = (restore(config, found, second.path) for found in (checkpoint, other))
    both = sorted(set(one.stream.class_names) & set(two.stream.class_names))
    if both or one.stream.label_period is not None:
        raise UserError(f"merge: {some(both or one.stream.class_names)} in both runs; allowed: runs of classes in tasks, without a class "
                        "in common")
    if one.format != two.format:
        raise UserError(f"merge: the runs take images as {one.format} and as {two.format}; allowed: the same size and normalisation")
    backbones = [{name: tensor for name, tensor in found.weights.items() if not _of_heads(name)} for found in (checkpoint, other)]
    same = backbones[0].keys() == backbones[1].keys() and all(torch.equal(t, backbones[1][name]) for name, t in backbones[0].items())
    if not same or checkpoint.meta["base_sha256"] != other.meta["base_sha256"]:
        raise UserError("merge: the runs' backbones are not the same, so their features do not compare; allowed: runs on one frozen "
                        "backbone (bcb_lrscale 0, or a method that freezes it)")
    one.learner.join_statistics(two.learner)
    one.learner.net.heads.extend(two.learner.net.heads)
    one.learner.net.head_scales += two.learner.net.head_scales
    stream = one.stream.joined(two.stream)
    figures = Figures(**checkpoint.meta["figures"])
    figures.skip_to(stream.num_tasks - 1)
    prints = [found.meta["fingerprint"] for found in (checkpoint, other)]
    fingerprint = {split: {**prints[0][split], **prints[1].get(split, {})} for split in prints[0]}
    meta = {**checkpoint.meta, "figures": vars(figures), "fingerprint": fingerprint, "data": StoredData(stream, one.format).to_json()}
    return replace(checkpoint, task=stream.num_tasks - 1, weights=one.learner.network_state(), state=one.learner.extra_state(), meta=meta)


def _of_heads(name: str) -> bool:
    return re.match(r"heads\.|_extra_state$", name) is not None
