"""Stage 1, the same for every method: epochs of SGD on a task's images, whatever the number of parts and processes.

A method says through its hooks (models/base.py) what a batch is, which module runs on it and what the loss is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from convs.backbones import Backbone
from convs.network import IncrementalNet
from utils.config import MethodSettings
from utils.data.stream import TaskStream
from utils.errors import UserError
from utils.machine.distributed import copy_from_first, share_of_batch
from utils.rng import seed_globals
from utils.run.checkpoint import load_optimizer_tensors
from utils.run.interrupt import check_stop
from utils.run.monitor import Monitor

Batch = tuple[Tensor, ...]  # images (B, C, H, W), labels (B,), then whatever else of B rows the method's loss needs
AfterEpoch = Callable[[int, torch.optim.Optimizer], None]  # epochs done so far, the optimiser


class Trainable(Protocol):
    """What stage 1 asks of a learner; models/base.py says what each hook is for."""

    config: MethodSettings
    stream: TaskStream
    net: IncrementalNet
    fabric: Fabric
    task: int
    epoch: int  # stage 1 keeps these two
    step: int
    after_step: Callable[[Tensor], None] | None  # gets the labels (B,) of the batch that a step was made on

    @property
    def backbone_trains(self) -> bool: ...
    def make_optimizer(self, task: int) -> torch.optim.Optimizer: ...
    def learning_rate(self, base_lr: float, epoch: int) -> float: ...
    def training_module(self, task: int) -> nn.Module: ...
    def training_batches(self, task: int, epoch: int) -> Iterable[Batch]: ...
    def images_per_epoch(self, task: int) -> int: ...
    @property
    def training_loss(self) -> Callable[..., tuple[Tensor, Tensor, Tensor]]: ...  # of the module and the tensors of a batch
    def after_backward(self, module: nn.Module) -> None: ...
    def after_epoch(self, task: int, epoch: int) -> None: ...
    def load_trained(self, state: Mapping[str, Tensor]) -> None: ...
    def load_epoch_state(self, state: Mapping[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class TrainingState:
    """Where an interrupted run was inside a task, as its checkpoint holds it."""

    epoch: int  # epochs done
    weights: Mapping[str, Tensor]  # of `network_state`
    state: Mapping[str, Tensor]  # the optimiser's tensors and those of `epoch_state`


class Steps:
    """An epoch's steps with their number, for a method that gathers them from several batches."""

    def __init__(self, steps: Iterator[Batch], number: int) -> None:
        self._steps = steps
        self._number = number

    def __len__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[Batch]:
        return self._steps


@dataclass
class EpochStats:
    """What one epoch of stage 1 reports."""

    losses: list[float] = field(default_factory=list)  # one per step
    accuracy: float = 0.0  # percent over the training passes, among the logits that the loss saw
    images: int = 0  # of all processes

    @property
    def loss(self) -> float:
        return sum(self.losses) / max(len(self.losses), 1)


def train(learner: Trainable, task: int, monitor: Monitor, start: TrainingState | None = None,
          after_epoch: AfterEpoch | None = None) -> None:
    """`epochs` passes over the task's images. Starts at the epoch where an interrupted run stopped.

    Args:
        start: what that run had done of this task.
        after_epoch: called after every epoch but the last.
    """
    c, fabric = learner.config, learner.fabric
    optimizer = learner.make_optimizer(task)
    base_lrs = [group["lr"] for group in optimizer.param_groups]
    if start is not None:
        _restore(learner, optimizer, start)
        monitor.log(f"task {task + 1}: continuing after epoch {start.epoch}")
    module, optimizer = fabric.setup(learner.training_module(task), optimizer)
    learner.net.train(learner.backbone_trains)
    for epoch in range(start.epoch if start is not None else 0, c.epochs):
        learner.epoch = epoch
        monitor.begin_epoch(task, epoch, c.epochs)
        rank = fabric.global_rank  # processes drop different paths; the first one those of a run with one process
        seed_globals(c.torch_seed, "epoch", task, epoch, *([rank] if rank else []))
        for group, base_lr in zip(optimizer.param_groups, base_lrs, strict=True):
            group["lr"] = learner.learning_rate(base_lr, epoch)
        where = f"task {task + 1}/{learner.stream.num_tasks} epoch {epoch + 1}/{c.epochs}"
        batches = monitor.bar(learner.training_batches(task, epoch), where)
        images = learner.images_per_epoch(task) if fabric.world_size > 1 else None
        stats = train_epoch(learner, module, optimizer, batches, monitor.step_shower(batches, optimizer), images)
        refuse_bad_losses(stats.losses, f"task {task + 1}, epoch {epoch + 1}")
        learner.after_epoch(task, epoch)
        monitor.trained_images += stats.images
        monitor.end_epoch(task, epoch, c.epochs, stats.losses, stats.accuracy, optimizer.param_groups)
        if after_epoch is not None and epoch + 1 < c.epochs:
            after_epoch(epoch + 1, optimizer)
    copy_from_first(fabric, learner.net.buffers())  # each process saw other images: BatchNorm's statistics are the first one's
    learner.net.eval()


def train_epoch(learner: Trainable, module: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable[Batch],
                on_step: Callable[[Tensor], None] | None = None, images: int | None = None) -> EpochStats:
    """One pass of SGD. Losses stay on the device until the pass ends, so that no step waits for them.

    With several processes each step sees this process's part of the batch; what is returned is of the whole.

    Args:
        images: of the whole epoch, over all processes; with several processes it says how large each whole batch is.
    """
    sizes = None if images is None else batch_sizes(images, learner.config.batch_size)
    fabric = learner.fabric
    losses, corrects, seen = [], [], 0  # seen: images, of this process
    for step, batch in enumerate(batches):
        check_stop()
        learner.step = step
        batch = fabric.to_device(batch)
        loss, correct = backward_batch(learner, module, batch, sizes[step] if sizes is not None else len(batch[0]))
        learner.after_backward(module)
        optimizer.step()
        losses.append(loss)
        corrects.append(correct)
        seen += len(batch[0])
        if learner.after_step is not None:
            learner.after_step(batch[1])
        if on_step is not None:
            on_step(loss)
    if not losses:
        return EpochStats()
    correct = torch.stack(corrects).sum()
    correct, count = fabric.all_reduce(torch.stack([correct, torch.full_like(correct, seen)]), reduce_op="sum").tolist()
    per_step = fabric.all_reduce(torch.stack(losses), reduce_op="mean").tolist()
    return EpochStats(per_step, 100 * correct / max(count, 1), int(count))


def batch_sizes(images: int, batch_size: int) -> list[int]:
    """Images of every whole batch of an epoch; the last one takes the rest."""
    return [min(batch_size, images - start) for start in range(0, images, batch_size)]


def backward_batch(learner: Trainable, module: nn.Module, batch: Batch, whole: int) -> tuple[Tensor, Tensor]:
    """Set the gradient to that of a batch's loss, computed in `accumulate` parts; the loss and the number of correct guesses.

    Every loss is a mean over images, so the parts' losses are weighted with their number of images: the gradient is that
    of the whole batch, over all processes.

    Args:
        whole: images of the batch, over all processes.
    """
    fabric, accumulate = learner.fabric, learner.config.accumulate
    share = share_of_batch(fabric, len(batch[0]), whole)
    if not len(batch[0]):  # a small last batch left this process nothing; it takes part in the exchange with weight 0
        images, labels = batch[:2]
        batch = (images.new_zeros(1, *images.shape[1:]), labels.new_full((1,), learner.stream.classes_before(learner.task)))
    parts = list(zip(*(tensor.chunk(accumulate) for tensor in batch), strict=True))
    losses, corrects = [], []
    for number, part in enumerate(parts, start=1):
        waits = share is not None and number < len(parts)  # gradients are exchanged once, with the last part
        with fabric.no_backward_sync(module) if waits else nullcontext():
            loss, logits, targets = learner.training_loss(module, *part)
            if len(parts) > 1:
                loss = loss * (len(part[0]) / len(batch[0]))
            if share is not None:
                loss = loss * share
            if number == 1:  # after the forward pass: its activations take the memory first, and the freed gradients' is used again
                module.zero_grad()
            fabric.backward(loss)
        losses.append(loss.detach())
        corrects.append((logits.detach().argmax(dim=1) == targets).sum())
    total, correct = (sum(found[1:], found[0]) for found in (losses, corrects))  # of one part nothing is computed
    return total, correct if share is None or share > 0 else torch.zeros_like(correct)


def refuse_bad_losses(losses: Sequence[float], where: str) -> None:
    """Raises UserError for the first loss that is no number or infinite."""
    step = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)
    if step is not None:
        raise UserError(f"the loss became {losses[step]} in {where}, step {step + 1}. Likely settings: lr or bcb_lrscale too high, "
                        "precision 16-mixed (its numbers end at 65,504, and a backbone with larger ones needs bf16-mixed or 32-true, "
                        "whatever the learning rate), or std of the data set near 0. The last good checkpoint is kept; change the setting "
                        "and start a new run.")


def backbone_groups(backbone: Backbone, lr: float, wanted: Callable[[str], bool], layer_decay: float | None,
                    name: str) -> list[dict[str, Any]]:
    """The backbone's trained parameters whose name is `wanted`, at `lr`; with `layer_decay` one group per layer.

    A layer's rate is lr * layer_decay^(layers above it) (BEiT, arXiv 2106.08254, section 3.2 of its code's fine-tuning).
    """
    named = [(parameter_name, p) for parameter_name, p in backbone.model.named_parameters() if p.requires_grad and wanted(parameter_name)]
    if layer_decay is None:
        return [{"params": [p for _, p in named], "lr": lr, "name": name}] if named else []
    layers = backbone.layer_of_parameter()
    top = max(layers.values())
    groups: dict[int, list[nn.Parameter]] = {}
    for parameter_name, parameter in named:
        groups.setdefault(layers[parameter_name], []).append(parameter)
    return [{"params": group, "lr": lr * layer_decay ** (top - layer), "name": f"{name} layer {layer}"}
            for layer, group in sorted(groups.items())]


def _restore(learner: Trainable, optimizer: torch.optim.Optimizer, start: TrainingState) -> None:
    learner.load_trained(start.weights)
    load_optimizer_tensors(optimizer, start.state)
    learner.load_epoch_state({name: tensor.to(learner.fabric.device) for name, tensor in start.state.items()})
