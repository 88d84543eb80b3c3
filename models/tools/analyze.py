"""Why a run forgets, from its checkpoints: what the features still know, how far they moved, and where the classifier leans.

    python main.py analyze logs/slca_demo

docs/analysis.md says how to read what it writes; what is measured is in models/analysis/.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from models.analysis.embedding import embed, embedding_method
from models.analysis.heads import head_biases, predictions
from models.analysis.knowledge import linear_probe, nearest_mean, percent
from models.analysis.staleness import Remembered
from models.analysis.states import Seen, flat, load_state, state_of
from models.analysis.worst import worst_classes
from models.registry import resolve_config
from models.tools.build import make_learner
from utils.config import Config, MethodSettings, parse_config
from utils.errors import UserError
from utils.files import refuse_links
from utils.formulas.similarity import linear_cka
from utils.last_resort import keep_traceback, one_sentence
from utils.machine.device import make_fabric
from utils.report.analysis import Analysis, write_analysis
from utils.report.analysis_page import ANALYSIS_PAGE, write_analysis_page
from utils.run.checkpoint import CheckpointStore
from utils.run.run_folder import RunFolder
from utils.terminal import show

log = logging.getLogger("slca")

PER_CLASS = 500  # training images of each class for probes, means and Gaussians
MAP_POINTS = 1500  # test images on the map


def analyze(run: Path, *, seed: int | None = None, per_class: int = PER_CLASS, device: str = "auto") -> Path:
    """Analyse a run (a run's folder, or an experiment's: its newest run) and write analysis.json, pictures and analysis.html into it.

    Args:
        seed: default the run's first; per_class: training images of each class for probes, means and Gaussians.

    Returns:
        The page.

    Raises:
        UserError: there is no such run or checkpoint, its data or weights are gone, or it is domain-incremental.
    """
    found = RunFolder.named(run)
    config = resolve_config(parse_config({**found.status().get("config", {}), "device": device}, source=str(found.path / "run.json")))
    seed = config.seeds[0] if seed is None else seed
    if seed not in config.seeds:
        raise UserError(f"seed: got {seed}, allowed: {', '.join(map(str, config.seeds))}, the seeds of {found.path}")
    if config.scenario == "domain":
        raise UserError(f"analyze: {found.path} is domain-incremental; the analysis is of class-incremental runs")
    store = CheckpointStore(found.path / f"seed{seed}" / "checkpoints", warn=log.warning)
    there = sorted(int(name.removeprefix("task_")) for name in store.names() if "epoch" not in name)
    if not there:
        raise UserError(f"analyze: {found.path} has no checkpoint of seed {seed}; train with keep_checkpoints 'all'")
    refuse_links(found.path)
    analysis = _analyse(config, seed, store, there, per_class)
    analysis.run = f"{found.path.parent.name}/{found.path.name}"
    write_analysis(analysis, found.path)
    return write_analysis_page(analysis, found.path)


def _analyse(config: MethodSettings, seed: int, store: CheckpointStore, there: Sequence[int], per_class: int) -> Analysis:
    """All states in their order: the pre-trained one, then those `there`, tasks from 1."""
    learner = make_learner(config, seed, make_fabric(config.device, config.precision, config.tf32))
    stream, seen = learner.stream, Seen(learner, per_class)
    remembered = Remembered(stream.num_classes, learner.net.backbone.dim)
    shown = np.sort(np.random.default_rng(1).permutation(len(seen.test_labels))[:MAP_POINTS])
    found = Analysis.empty(type(learner).title_of(config), seed, [str(name) for name in stream.class_names],
                           [int(task) + 1 for task in stream.task_of_class], note=_note(there, stream.num_tasks),
                           map_classes=seen.test_labels[shown].tolist(), map_method=embedding_method(len(shown)))
    first = state_of(learner, seen, "pre-trained", None)
    found.blocks = list(first.blocks)
    for number in [0, *there]:
        state = first
        if number:
            load_state(learner, store, number - 1)
            state = state_of(learner, seen, f"task {number}", number - 1)
        log.info(f"analyze: {state.name}")
        known = stream.classes_upto(number - 1) if number else 0
        tested = seen.test_labels < known
        remembered.show(learner, state, seen, known)
        guesses = predictions(learner, state.test[torch.from_numpy(tested)]) if known else np.zeros(0, dtype=np.int64)
        found.states.append(state.name)
        found.tasks.append(number or None)
        probe_all = linear_probe(state, seen, stream.num_classes)
        found.probe_all.append(probe_all)
        found.nearest_mean_all.append(nearest_mean(state, seen))
        found.probe_seen.append(probe_all if known == stream.num_classes else linear_probe(state, seen, known) if known else None)
        found.classifier_seen.append(percent(guesses == seen.test_labels[tested]) if known else None)
        found.cka.append([linear_cka(first.blocks[name], state.blocks[name]) for name in found.blocks])
        found.mean_cosine.append(remembered.mean_cosines())
        found.frechet.append(remembered.distances())
        if number in (0, there[0], there[-1]):
            found.map[state.name] = embed(flat(state.test)[shown], found.map_method)
    found.heads = head_biases(learner, state.test[torch.from_numpy(tested)])
    found.worst = worst_classes(learner, seen, guesses, seen.test_labels[tested], remembered)
    found.stored = remembered.stored
    return found


def _note(there: Sequence[int], tasks: int) -> str:
    if len(there) == tasks:
        return ""
    return (f"Only the checkpoints after task {', '.join(map(str, there))} are there, so the other tasks are left out; a run with "
            "keep_checkpoints 'all' keeps every task's.")


# At the end of a run, with "analyze": true ---------------------------------------------------------------------


def check_analyzed(config: Config) -> None:
    """Raises UserError where a run is to be analysed at its end and cannot be."""
    if config.analyze and config.keep_checkpoints == "none":
        raise UserError("analyze: true needs checkpoints, but keep_checkpoints is 'none'; allowed: 'all' (every task counts) or 'last'")
    if config.analyze and config.scenario == "domain":
        raise UserError("analyze: true is for class-incremental runs, but scenario is 'domain'; leave one of them out")


def analyze_finished(run: RunFolder, device: torch.device) -> None:
    """Analyse a finished run that has no analysis yet; whatever fails is told, and the run is as finished as it was."""
    page = run.path / ANALYSIS_PAGE
    if not page.exists():
        try:
            analyze(run.path, device=str(device))
        except Exception as error:
            log.warning(f"the run is finished, but could not be analysed: {one_sentence(error)}. Try it again with python main.py analyze "
                        f"{run.path}" + ("" if isinstance(error, UserError) else f"; the traceback is in {keep_traceback(error)}"))
            return
    show(f"analysis: {page}")


# Command line --------------------------------------------------------------------------------------------------


def analyze_run(arguments: argparse.Namespace) -> None:
    """Analyse the run that is named and say where the page is. Raises UserError."""
    if arguments.images < 2:
        raise UserError(f"--images: got {arguments.images}, allowed: 2 or more")
    page = analyze(arguments.run, seed=arguments.seed, per_class=arguments.images, device=arguments.device)
    show(f"analysis: {page}")
