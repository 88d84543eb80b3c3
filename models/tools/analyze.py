"""Why a run forgets, from its checkpoints: what the features still know, how far they moved, and where the classifier leans.

    python main.py analyze logs/slca_demo

docs/analysis.md says how to read what it writes.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import BaseLearner
from models.registry import resolve_config
from models.tools.build import make_learner
from utils.config import MethodSettings, parse_config
from utils.data.fingerprint import changes
from utils.errors import DataChanged, UserError
from utils.formulas.similarity import linear_cka
from utils.machine.device import make_fabric
from utils.report.analysis import Analysis, HeadBias, WorstClass, write_analysis
from utils.report.analysis_page import write_analysis_page
from utils.run.checkpoint import Checkpoint, CheckpointStore, check_base_weights
from utils.run.run_folder import RunFolder
from utils.terminal import show

log = logging.getLogger("slca")

MAP_POINTS = 1500  # test images on the map
CKA_IMAGES = 2000  # test images that representations are compared on
WORST, TAKERS = 10, 3  # classes shown, and classes that take their images
PROBE_STEPS = 300  # of L-BFGS at most


@dataclass(frozen=True)
class State:
    """What one backbone makes of the same images; N test and M training images of all K classes."""

    name: str
    task: int | None  # from 0; None for the pre-trained state
    train: Tensor  # (M, D)
    test: Tensor  # (N, D)
    blocks: dict[str, Tensor]  # block -> (n, d) of the first CKA_IMAGES test images


class Seen:
    """The images that everything is measured on, and their labels: some training images of each class, all test images."""

    def __init__(self, learner: BaseLearner, per_class: int) -> None:
        data, tasks = learner.data, range(learner.stream.num_tasks)
        indices = data.task_indices("train", tasks)
        labels = data.labels_of("train", indices)
        chosen = np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in range(learner.stream.num_classes)])
        self.train_indices, self.test_indices = indices[np.sort(chosen)], data.task_indices("test", tasks)
        spread = np.random.default_rng(0).permutation(len(self.test_indices))[:CKA_IMAGES]
        self.compared = np.sort(spread)  # positions among the test images


def analyze(run: Path, *, seed: int | None = None, per_class: int = 500, device: str = "auto") -> Path:
    """Analyse a run (a run's folder, or an experiment's: its newest run) and write analysis.json, pictures and analysis.html into it.

    Args:
        seed: default the run's first; per_class: training images of each class for probes and means.

    Returns:
        The page.

    Raises:
        UserError: there is no such run or checkpoint, its data or weights are gone, or it is domain-incremental.
    """
    found = RunFolder(run) if (run / "run.json").is_file() else RunFolder.newest(run)
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
    analysis = _analyse(config, seed, store, there, per_class)
    analysis.run = f"{found.path.parent.name}/{found.path.name}"
    write_analysis(analysis, found.path)
    return write_analysis_page(analysis, found.path)


def _analyse(config: MethodSettings, seed: int, store: CheckpointStore, there: Sequence[int], per_class: int) -> Analysis:
    learner = make_learner(config, seed, make_fabric(config.device, config.precision, config.tf32))
    stream, seen = learner.stream, Seen(learner, per_class)
    train_labels = learner.data.labels_of("train", seen.train_indices)
    test_labels = learner.data.labels_of("test", seen.test_indices)
    missing = sorted(set(range(1, stream.num_tasks + 1)) - set(there))
    names = [str(name) for name in stream.class_names]
    found = Analysis(run="", title=type(learner).title_of(config), seed=seed, note=_note(there, missing), states=[], tasks=[],
                     class_names=names, task_of_class=[int(t) + 1 for t in stream.task_of_class], probe_all=[], nearest_mean_all=[],
                     probe_seen=[], classifier_seen=[], blocks=[], cka=[], mean_cosine=[], heads={}, worst=[], map={}, map_tasks=[])
    first = _state(learner, seen, "pre-trained", None)
    found.blocks = list(first.blocks)
    when_learned = torch.full((stream.num_classes, learner.net.backbone.dim), torch.nan)  # a class's mean where it was learned
    shown = np.sort(np.random.default_rng(1).permutation(len(test_labels))[:MAP_POINTS])
    found.map_tasks = [found.task_of_class[label] for label in test_labels[shown]]
    for number in [0, *there]:
        state = first
        if number:
            _load(learner, store, number - 1)
            state = _state(learner, seen, f"task {number}", number - 1)
        log.info(f"analyze: {state.name}")
        known = stream.classes_upto(number - 1) if number else 0
        found.states.append(state.name)
        found.tasks.append(number or None)
        found.probe_all.append(_probe(state, train_labels, test_labels, stream.num_classes))
        found.nearest_mean_all.append(_nearest_mean(state, train_labels, test_labels))
        found.probe_seen.append(_probe(state, train_labels, test_labels, known) if known else None)
        guesses = _predictions(learner, state.test[test_labels < known]) if known else None
        found.classifier_seen.append(None if guesses is None else _percent(guesses == test_labels[test_labels < known]))
        found.cka.append([linear_cka(first.blocks[name], state.blocks[name]) for name in found.blocks])
        found.mean_cosine.append(_mean_cosines(learner, state, train_labels, when_learned, known))
        if number in (0, there[0], there[-1]):
            found.map[state.name] = _principal_components(state.test[shown])
    last_labels = test_labels[test_labels < known]
    found.heads = _heads(learner, state.test[test_labels < known])
    found.worst = _worst(guesses, last_labels, names)
    return found


def _note(there: Sequence[int], missing: Sequence[int]) -> str:
    if not missing:
        return ""
    return (f"Only the checkpoints after task {', '.join(map(str, there))} are there, so the other tasks are left out; a run with "
            "keep_checkpoints 'all' keeps every task's.")


def _load(learner: BaseLearner, store: CheckpointStore, task: int) -> None:
    """Put the learner into its state after `task`, from 0. Raises UserError."""
    checkpoint = store.newest(task)
    if checkpoint is None or checkpoint.task != task:
        raise UserError(f"analyze: the checkpoint after task {task + 1} in {store.folder} is damaged")
    _check_data(learner, checkpoint, store.folder)
    check_base_weights(checkpoint, learner.untrained_sha256(checkpoint.weights), store.folder, learner.net.backbone.weights["source"])
    learner.load_network_state(checkpoint.weights, task)
    learner.load_extra_state({name: tensor.to(learner.fabric.device) for name, tensor in checkpoint.state.items()})
    learner.net.eval()


def _check_data(learner: BaseLearner, checkpoint: Checkpoint, where: Path) -> None:
    told = changes(checkpoint.meta["fingerprint"], learner.data.fingerprint)
    if told:
        raise DataChanged(f"analyze: the data have changed since {where / checkpoint.name} was written: {'; '.join(told)}. Put them back "
                          "as they were")


# One backbone --------------------------------------------------------------------------------------------------


def _state(learner: BaseLearner, seen: Seen, name: str, task: int | None) -> State:
    """Features of all images, and what each block makes of some of them."""
    train, _ = _extract(learner, "train", seen.train_indices)
    with _watched(learner.net.backbone.model) as outputs:
        test, blocks = _extract(learner, "test", seen.test_indices, outputs, seen.compared)
    return State(name, task, train, test, {**blocks, "features": test[torch.from_numpy(seen.compared)]})


@torch.inference_mode()
def _extract(learner: BaseLearner, split: str, indices: np.ndarray, outputs: dict[str, Tensor] | None = None,
             compared: np.ndarray | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Features (N, D) of images in the order of `indices`, several passes side by side; and those of `outputs`, which hooks fill, of
    the images at `compared` (n,), ascending, (n, d).
    """
    features: list[Tensor] = []
    done = 0
    watched: dict[str, list[Tensor]] = {}
    batch_size = learner.config.test_batch_size or learner.config.batch_size
    learner.net.eval()
    for images, _ in learner.data.batches(split, indices=indices, batch_size=batch_size, augment=False):
        with learner.fabric.autocast():
            features.append(learner.features(learner.fabric.to_device(images)).float().cpu())
        if outputs is not None and compared is not None:
            rows = torch.from_numpy(compared[(compared >= done) & (compared < done + len(images))] - done)
            for name, output in outputs.items():
                watched.setdefault(name, []).append(output[rows])
        done += len(images)
    return torch.cat(features), {name: torch.cat(parts) for name, parts in watched.items()}


@contextmanager
def _watched(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Keep what every block gave for the last batch: mean over the tokens, or over the places of a feature map, (N, d).

    A timm model has its blocks in `blocks`, or in `layer1` and so on; another is watched at its end alone (the features). Of a method
    that passes the backbone several times the last pass counts.
    """
    named = [(f"block {n + 1}", block) for n, block in enumerate(getattr(model, "blocks", []))]
    named = named or [(name, module) for name, module in model.named_children() if name.startswith(("layer", "stages"))]
    outputs: dict[str, Tensor] = {}

    def keeper(name: str) -> object:
        def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
            outputs[name] = (output.flatten(2).mean(dim=2) if output.ndim == 4 else output.mean(dim=1)).float().cpu()
        return keep

    handles = [module.register_forward_hook(keeper(name)) for name, module in named]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


# What is measured of it ----------------------------------------------------------------------------------------


def _flat(features: Tensor) -> np.ndarray:
    return features.flatten(1).numpy()


def _probe(state: State, train_labels: np.ndarray, test_labels: np.ndarray, classes: int) -> float:
    """Percent right of a logistic regression on the features of the first `classes` classes, standardised."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, test = train_labels < classes, test_labels < classes
    if len(np.unique(train_labels[train])) < 2:
        return 100.0
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=PROBE_STEPS))
    probe.fit(_flat(state.train)[train], train_labels[train])
    return _percent(probe.predict(_flat(state.test)[test]) == test_labels[test])


def _class_means(features: Tensor, labels: np.ndarray, classes: int) -> Tensor:
    """(K, D); nan for a class without images."""
    flat, owner = features.flatten(1), torch.from_numpy(labels)
    return torch.stack([flat[owner == c].mean(dim=0) for c in range(classes)])


def _nearest_mean(state: State, train_labels: np.ndarray, test_labels: np.ndarray) -> float:
    """Percent right by the largest cosine with a class's mean."""
    means = _class_means(state.train, train_labels, int(train_labels.max()) + 1)
    cosines = F.normalize(state.test.flatten(1), dim=1) @ F.normalize(means, dim=1).T
    return _percent(cosines.argmax(dim=1).numpy() == test_labels)


def _mean_cosines(learner: BaseLearner, state: State, train_labels: np.ndarray, when_learned: Tensor, known: int) -> list[float | None]:
    """Cosine of each known class's stored mean with its mean under this backbone; the mean when it was learned where none is stored.

    Fills `when_learned` (K, D) for classes that are new.
    """
    if not known or _flat(state.train).shape[1] != when_learned.shape[1]:  # several passes side by side, another number after each task
        return [None] * len(when_learned)
    now = _class_means(state.train, train_labels, len(when_learned))
    new = when_learned[:known].isnan().any(dim=1)
    when_learned[:known][new] = now[:known][new]
    gaussians = getattr(learner, "gaussians", None)
    stored = gaussians.means().float().cpu() if gaussians is not None and len(gaussians) == known else when_learned[:known]
    cosines = F.cosine_similarity(stored, now[:known]).tolist()
    return [*cosines, *[None] * (len(when_learned) - known)]


@torch.inference_mode()
def _predictions(learner: BaseLearner, features: Tensor) -> np.ndarray:
    """(N,) class by its place in the order of learning."""
    return torch.cat([learner.scores(part.to(learner.fabric.device)).argmax(dim=1).cpu() for part in features.split(512)]).numpy()


@torch.inference_mode()
def _heads(learner: BaseLearner, features: Tensor) -> dict[str, HeadBias]:
    """The leaning of the heads, before alignment too where they were aligned; nothing of a method without heads."""
    if not len(learner.net.heads) or _flat(features).shape[1] != learner.net.backbone.dim:
        return {}
    before, weights = learner.classifier_before_alignment(), getattr(learner, "heads_before", {})
    found = {}
    if before is not None:
        found["before"] = _bias(learner, before(features.to(learner.fabric.device)).cpu(),
                                [weights[f"{t}.weight"] for t in range(len(learner.net.heads))])
    found["after"] = _bias(learner, learner.net.classify(features.to(learner.fabric.device)).cpu(), [h.weight for h in learner.net.heads])
    return found


def _bias(learner: BaseLearner, logits: Tensor, weights: Sequence[Tensor]) -> HeadBias:
    """logits: (N, K); weights: (C_t, D) of each head."""
    per_head = logits.split(learner.net.head_sizes, dim=1)
    owner = torch.as_tensor(learner.stream.task_of_class)[logits.argmax(dim=1)]
    counts = torch.bincount(owner, minlength=len(per_head))
    return HeadBias(mean_logit=[part.mean().item() for part in per_head], weight_norm=[w.norm(dim=1).mean().item() for w in weights],
                    share=[100 * count / max(len(logits), 1) for count in counts.tolist()])


def _worst(guesses: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> list[WorstClass]:
    """The classes with the lowest accuracy after the last task, and what their images were taken for."""
    found = []
    for c in np.unique(labels):
        taken = np.bincount(guesses[labels == c], minlength=len(names)) * 100.0 / np.count_nonzero(labels == c)
        others = [int(k) for k in np.argsort(-taken, kind="stable") if k != c and taken[k] > 0][:TAKERS]
        found.append(WorstClass(names[c], float(taken[c]), [(names[k], float(taken[k])) for k in others]))
    return sorted(found, key=lambda one: one.accuracy)[:WORST]


def _principal_components(features: Tensor) -> list[tuple[float, float]]:
    from sklearn.decomposition import PCA

    return [(float(x), float(y)) for x, y in PCA(n_components=2, random_state=0).fit_transform(_flat(features))]


def _percent(right: np.ndarray) -> float:
    return 100.0 * float(np.mean(right)) if right.size else 0.0


# Command line --------------------------------------------------------------------------------------------------


def analyze_run(arguments: argparse.Namespace) -> None:
    """Analyse the run that is named and say where the page is. Raises UserError."""
    if arguments.images < 2:
        raise UserError(f"--images: got {arguments.images}, allowed: 2 or more")
    page = analyze(arguments.run, seed=arguments.seed, per_class=arguments.images, device=arguments.device)
    show(f"analysis: {page}")
