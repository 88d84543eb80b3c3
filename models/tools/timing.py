"""How long a run would take, for `--dry_run`: measured on two batches where data, weights and device are there, else computed.

Alignment needs neither data nor weights, and is always measured. An estimate: it leaves out start-up, checkpoints and
what a method does beside training, statistics, alignment and test.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from convs.backbones import find_weights
from models import stage1
from models.base import BaseLearner
from models.registry import resolve_config
from models.slca.alignment import Alignment, samples_per_round
from models.slca.slca import SLCA
from models.tools.build import backbone_entry, make_learner
from models.tools.dry_run import shape_learner
from utils.config import Config
from utils.data.data_manager import DataManager
from utils.data.notes import told_before
from utils.data.places import home_expanded
from utils.data.protocols import planned_counts, protocol_of
from utils.data.registry import count_images, dataset_info
from utils.data.stream import TaskStream
from utils.errors import UserError, first_line
from utils.machine.device import make_fabric

MEASURED_IMAGES = 16  # per batch on the CPU, where a whole batch of a large network takes a minute
BATCHES = 2
MATRIX, REPEATS = 1024, 4  # of the product whose speed stands for the device's
EFFICIENCY = 0.5  # share of that speed which a network reaches
BACKWARD = 2.0  # times the arithmetic of the forward pass
ALIGNMENT_STEPS = 10
FITTED = 2  # classes whose Gaussians are fitted to measure alignment; the others have the same


@dataclass(frozen=True)
class Speed:
    """Seconds per image, and how that is known."""

    train: float
    test: float
    source: str
    memory_bytes: int | None = None  # peak of the measured batches, where the device counts it


def estimate_time(config: Config) -> str:
    """One paragraph: seconds per task and for the whole run, and where the figure comes from. Raises UserError."""
    config = resolve_config(config)
    try:
        fabric = make_fabric(config.device, config.precision, config.tf32)
        if fabric.world_size > 1:
            return "time, not estimated: the run uses several devices; a dry run starts one process. Name one with --device."
    except UserError as error:
        return f"time, not estimated: {error}"
    try:
        with told_before():  # by `describe_run`, which reads the data set too
            learner, speed, counts = _measure(config, fabric)
    except UserError as error:
        why = first_line(error)[:120]
        with told_before():
            train_images, test_images = count_images(config.dataset, config.data_root)
        if train_images is None:
            return f"time, not estimated: the number of images is not known ({why})"
        stream, trained = _planned(config, train_images)
        learner = shape_learner(config, stream)
        share = [size / stream.num_classes for size in stream.task_sizes]
        counts = [(train, (test_images or 0) * sum(share[: t + 1])) for t, train in enumerate(trained)]
        speed = _compute(learner, fabric.device, why)
    alignment = _alignment_seconds(learner, sum(train for train, _ in counts), fabric.device)
    images = [config.epochs * learner.planned_images(task, train) for task, (train, _) in enumerate(counts)]  # forward and backward
    seconds = [stepped * speed.train + (train + test) * speed.test + align
               for stepped, (train, test), align in zip(images, counts, alignment, strict=True)]
    memory = "" if speed.memory_bytes is None else f"; peak memory of a step {speed.memory_bytes / 2**30:.2f} GiB"
    aligned = f", alignment {_span(sum(alignment))} of it" if any(alignment) else ""
    training = f"{1000 * speed.train:.2f} ms per image in training, " if any(images) else "nothing trains, "
    return (f"time, {speed.source}: {training}{1000 * speed.test:.2f} ms per image without gradient; "
            f"{_span(min(seconds))} to {_span(max(seconds))} per task, {_span(sum(seconds))} for {len(seconds)} task(s){aligned}, "
            f"times {len(config.seeds)} seed(s){memory}")


def _planned(config: Config, train_images: int) -> tuple[TaskStream, list[float]]:
    """The stream and the training images of each task, as if all classes of the data set had as many. Raises UserError."""
    classes, seed = dataset_info(config.dataset).num_classes, config.seeds[0]
    labels = np.arange(train_images) % classes if classes else None
    stream = DataManager.plan(config, seed, labels)
    if labels is None or not protocol_of(config):
        return stream, [train_images * size / stream.num_classes for size in stream.task_sizes]
    counts = planned_counts(config, seed, stream, labels)
    return stream, np.bincount(stream.task_of_class, counts, minlength=stream.num_tasks).tolist()


def _measure(config: Config, fabric) -> tuple[BaseLearner, Speed, list[tuple[int, int]]]:
    """The learner, seconds per image of two batches after one to warm up, and (training, test) images of every task.

    Raises UserError.
    """
    _need_files(config)
    nothing_started_or_written = {"cache": "none", "feature_cache": "none", "num_workers": 0, "compile": False}
    small = config.model_copy(update=nothing_started_or_written)
    learner = make_learner(small, config.seeds[0], fabric)
    data = learner.data
    learner.begin_task(0)
    size = config.batch_size if fabric.device.type == "cuda" else min(config.batch_size, MEASURED_IMAGES)
    indices = data.task_indices("train", 0)[: size * (1 + BATCHES)]
    batches = list(data.batches("train", indices=indices, batch_size=size, augment=True, shuffle_seed=0))
    if fabric.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(fabric.device)
    train = _training_seconds(learner, batches) if learner.has_heads else 0.0
    learner.net.eval()

    @torch.inference_mode()
    def look(some: list) -> None:
        for images, _ in some:
            learner.features(fabric.to_device(images))

    test = _per_image(look, batches, fabric.device)
    memory = torch.cuda.max_memory_allocated(fabric.device) if fabric.device.type == "cuda" else None
    seen = [(data.count("train", t) + data.count("again", t), data.count("test", list(range(t + 1)))) for t in range(data.stream.num_tasks)]
    return learner, Speed(train, test, f"measured on {min(BATCHES, len(batches))} batches of {size} on {fabric.device}", memory), seen


def _training_seconds(learner: BaseLearner, batches: list) -> float:
    """Seconds per image of stage 1's steps."""
    fabric, optimizer = learner.fabric, learner.make_optimizer(0)
    module, optimizer = fabric.setup(learner.training_module(0), optimizer)
    learner.net.train(learner.backbone_trains)
    return _per_image(lambda some: stage1.train_epoch(learner, module, optimizer, some), batches, fabric.device)


def _need_files(config: Config) -> None:
    """Raises UserError where a run would first download data or weights."""
    info, entry = dataset_info(config.dataset), backbone_entry(config)
    if isinstance(config.dataset, str) and info.folder and not (home_expanded(config.data_root) / info.folder).is_dir():
        raise UserError(f"the data are not in {config.data_root}/{info.folder}")
    if config.pretrained and find_weights(entry) is None:
        raise UserError("the weights are not in pretrained/")


def _per_image(work, batches: list, device: torch.device) -> float:
    """Seconds per image of all batches but the first, which warms up (of the only one where there is one)."""
    work(batches[:1])
    rest = batches[1:] or batches
    _wait(device)
    start = time.perf_counter()
    work(rest)
    _wait(device)
    return (time.perf_counter() - start) / sum(len(labels) for _, labels in rest)


def _compute(learner: BaseLearner, device: torch.device, why: str) -> Speed:
    """Seconds per image from the network's arithmetic and the speed of one matrix product on the device."""
    backbone = learner.net.backbone
    image = torch.empty(1, backbone.channels, backbone.image_size, backbone.image_size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone(image)
    forward = counter.get_total_flops() / (EFFICIENCY * _matrix_speed(device, learner.config.precision))
    train = forward * (1 + BACKWARD) if learner.backbone_trains else forward
    return Speed(train, forward, f"computed from {counter.get_total_flops() / 1e9:.1f} GFLOP per image and the speed of a matrix product "
                                 f"on {device} (not measured: {why})")


def _alignment_seconds(learner: BaseLearner, train_images: float, device: torch.device) -> list[float]:
    """Seconds of alignment after each task, from what the second task and the last one cost.

    Features are drawn from classes of random features, which cost what real ones of as many images do.
    """
    c, ends = learner.config, list(accumulate(learner.stream.task_sizes))
    if not isinstance(learner, SLCA) or not learner.aligns or len(ends) == 1:
        return [0.0] * len(ends)
    images = max(round(train_images / ends[-1]), 1)
    features = torch.randn(FITTED * images, learner.net.backbone.dim, device=device)
    learner.gaussians.fit(features, torch.arange(len(features), device=device) % FITTED, range(FITTED))
    measured = (ends[1], ends[-1])
    costs = [_sample_and_step(learner, classes, device) for classes in measured]
    per_sample, per_step = (np.interp(ends, measured, column) for column in zip(*costs, strict=True))
    samples = np.array(ends) * c.ca_samples
    seconds = c.ca_epochs * (samples * per_sample + np.ceil(samples / c.ca_batch_size) * per_step)
    return [0.0, *seconds[1:].tolist()]  # the first task is not aligned


def _sample_and_step(learner: SLCA, classes: int, device: torch.device) -> tuple[float, float]:
    """Seconds to draw one feature and to make one step of alignment over `classes` classes."""
    c, gaussians, generator = learner.config, learner.gaussians, torch.Generator(device)
    gaussians.classes = [gaussians[label % FITTED] for label in range(classes)]
    alignment = Alignment([nn.Linear(learner.net.backbone.dim, classes, device=device)], lr=c.lr, momentum=c.momentum,
                          weight_decay=c.weight_decay, tau=c.ca_with_logit_norm)
    means, count = gaussians.means(), samples_per_round(c, classes, learner.net.backbone.dim)[0]
    gaussians.sample(means, count, generator)  # takes the buffers' memory
    _wait(device)
    start = time.perf_counter()
    features, labels = gaussians.sample(means, count, generator)
    _wait(device)
    drawn = time.perf_counter()
    batches = torch.randperm(len(labels), generator=generator, device=device).split(c.ca_batch_size)[:ALIGNMENT_STEPS]
    for batch in batches:
        alignment.step(features[batch], labels[batch])
    _wait(device)
    gaussians.free_buffers()
    return (drawn - start) / len(labels), (time.perf_counter() - drawn) / len(batches)


def _matrix_speed(device: torch.device, precision: str) -> float:
    """Operations per second of a square matrix product."""
    dtype = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}[precision]
    a = torch.ones(MATRIX, MATRIX, device=device, dtype=dtype)
    a @ a
    _wait(device)
    start = time.perf_counter()
    for _ in range(REPEATS):
        a @ a
    _wait(device)
    return REPEATS * 2 * MATRIX**3 / (time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
