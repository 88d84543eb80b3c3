"""The order of one task, shared by all learners; a learner overrides only what its paper adds.

    begin_task   new head; old heads frozen; learner-specific set-up
    train        stage 1: epochs of SGD on the task's images
    end_task     statistics, alignment, memory: whatever follows training
    evaluate     test images of all classes seen so far -> predictions

`begin_task` is deterministic: calling it again on the state after the previous task gives the same network. That is
what makes a run resumable inside a task from the weights and the optimiser alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from convs.backbones import check_finite
from convs.network import IncrementalNet, OwnTask
from utils.config import Config
from utils.data.data_manager import DataManager
from utils.formulas.metrics import Evaluation, evaluate_predictions
from utils.formulas.schedules import multistep
from utils.machine.device import fuses_sgd
from utils.machine.distributed import gather_rows, share_of_batch
from utils.rng import seed_globals, seed_of, torch_generator

if TYPE_CHECKING:
    from utils.run.monitor import Monitor

TOP_K = 5
FLOAT_BYTES = 4  # of a float32, which statistics and parameters are kept in
SCORED_AT_ONCE = 512  # features per call of `scores` in evaluation; bounds a read-out's memory


@dataclass
class EpochStats:
    """What one epoch of stage 1 reports."""

    losses: list[float] = field(default_factory=list)  # one per step
    accuracy: float = 0.0  # percent over the training passes, among the logits that the loss saw

    @property
    def loss(self) -> float:
        return sum(self.losses) / max(len(self.losses), 1)


class BaseLearner:
    """A continual learner: state, the order of a task, evaluation.

    Args:
        config: resolved settings; never written to.
        data: tasks, labels and batches.
        net: backbone and heads (heads are added task by task).
        fabric: device, precision and processes.
    """

    title: ClassVar[str] = ""  # name in tables
    rehearsal_free: ClassVar[bool] = True  # keeps no image of an old task
    defaults: ClassVar[dict[str, Any]] = {}  # settings whose default depends on the method
    frozen_backbone: ClassVar[bool] = False  # the pre-trained weights never move; bcb_lrscale can only be 0
    has_heads: ClassVar[bool] = True  # False: classifies by statistics of the features; no head, no stage 1, epochs are ignored

    def __init__(self, config: Config, data: DataManager, net: IncrementalNet, fabric: Fabric) -> None:
        self.config = config
        self.data = data
        self.net = net.to(fabric.device)
        self.fabric = fabric
        self.task = -1  # the task begun last; -1 before the first
        self.epoch = 0  # of stage 1
        self.feature_cache: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}  # (split, task) -> features, labels
        self.temperature = 1.0  # of `probabilities`; a method may fit it on validation images
        self.freeze_backbone()

    @classmethod
    def title_of(cls, config: Config) -> str:
        """The name in tables of a run with `config`."""
        return cls.title

    # One task ------------------------------------------------------------------------------------------------

    def learn_task(self, task: int, monitor: Monitor) -> None:
        """Learn the classes of `task`; the order that every method shares."""
        self.begin_task(task)
        if self.has_heads:
            with monitor.stage("train"):
                self.train(task, monitor)
        self.end_task(task, monitor)
        self.feature_cache.pop(("train", task), None)  # of no use to later tasks

    def begin_task(self, task: int) -> None:
        """Add the head of `task` and freeze the older ones."""
        self.task = task
        if self.has_heads:
            self.net.add_head(self.data.task_sizes[task], torch_generator(self.config.torch_seed, "head", task))
        for head in self.net.heads[:-1]:
            head.requires_grad_(False)

    def train(self, task: int, monitor: Monitor) -> None:
        """Stage 1: `epochs` passes over the task's images. Starts at the epoch where an interrupted run stopped."""
        if self.backbone_trains:
            self.feature_cache.clear()
        optimizer = self.make_optimizer(task)
        base_lrs = [group["lr"] for group in optimizer.param_groups]
        first_epoch = monitor.restore_epoch(self, optimizer)
        module, optimizer = self.fabric.setup(self.training_module(task), optimizer)
        self.net.train(self.backbone_trains)
        for epoch in range(first_epoch, self.config.epochs):
            self.epoch = epoch
            rank = self.fabric.global_rank  # processes drop different paths; the first one those of a run with one process
            seed_globals(self.config.torch_seed, "epoch", task, epoch, *([rank] if rank else []))
            for group, base_lr in zip(optimizer.param_groups, base_lrs, strict=True):
                group["lr"] = self.learning_rate(base_lr, epoch)
            batches = self.training_batches(task, epoch)
            bar = monitor.bar(batches, f"task {task + 1}/{self.data.num_tasks} epoch {epoch + 1}/{self.config.epochs}")
            stats = self.train_epoch(module, optimizer, bar, monitor.step_shower(bar, optimizer))
            self.after_epoch(task, epoch)
            monitor.end_epoch(self, optimizer, epoch, stats)
        self.net.eval()

    def after_epoch(self, task: int, epoch: int) -> None:
        """After every epoch, before its checkpoint; a method may renew here what its next epoch needs."""

    def end_task(self, task: int, monitor: Monitor) -> None:
        """What a method does after training: statistics, alignment, choosing exemplars."""

    # Stage 1 -------------------------------------------------------------------------------------------------

    def training_batches(self, task: int, epoch: int) -> Iterable[tuple[Tensor, Tensor]]:
        """Augmented images (B, C, H, W) and labels (B,) of one epoch, in an order drawn for (task, epoch)."""
        return self.data.batches("train", task, batch_size=self.config.batch_size, augment=True,
                                 shuffle_seed=seed_of(self.config.torch_seed, "train", task, epoch))

    def training_module(self, task: int) -> nn.Module:
        """The module whose forward stage 1 runs: images -> the new task's own logits (N, C_t)."""
        return OwnTask(self.net, task)

    def training_loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss of one batch, and the logits and targets from which training accuracy is counted."""
        logits = module(images)  # (N, C_t)
        targets = labels - self.data.classes_before(self.task)
        return self.classification_loss(logits, targets), logits, targets

    def classification_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of logits (N, C) and targets (N,); cross-entropy."""
        return F.cross_entropy(logits, targets)

    def after_backward(self, module: nn.Module) -> None:
        """Between the gradient of the batch's loss and the step; a method may change the gradients here."""

    def train_epoch(self, module: nn.Module, optimizer: torch.optim.Optimizer,
                    batches: Iterable[tuple[Tensor, Tensor]], on_step: Callable[[Tensor], None] | None = None) -> EpochStats:
        """One pass of SGD. Losses stay on the device until the pass ends, so that no step waits for them.

        With several processes each step sees this process's part of the batch; what is returned is of the whole.
        """
        losses: list[Tensor] = []
        counts = torch.zeros(2, dtype=torch.long, device=self.fabric.device)  # images classified correctly, images
        for images, labels in batches:
            images, labels = self.fabric.to_device((images, labels))
            loss, correct = self.training_step(module, optimizer, images, labels)
            losses.append(loss)
            if on_step is not None:
                on_step(loss)
            counts[0] += correct
            counts[1] += len(labels)
        correct, count = self.fabric.all_reduce(counts, reduce_op="sum").tolist()
        per_step = self.fabric.all_reduce(torch.stack(losses), reduce_op="mean").tolist() if losses else []
        return EpochStats(per_step, 100 * correct / max(count, 1))

    def training_step(self, module: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One step of SGD on a batch; its loss (times this process's share) and correct guesses."""
        loss, correct = self.backward_batch(module, images, labels)
        self.after_backward(module)
        optimizer.step()
        return loss, correct

    def backward_batch(self, module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Set the gradient to that of a batch's loss, computed in `accumulate` parts; the loss and correct guesses.

        Every loss is a mean over images, so the parts' losses are weighted with their number of images: the gradient is that
        of the whole batch, over all processes.
        """
        share = share_of_batch(self.fabric, len(labels))
        if not len(labels):  # a small last batch left this process nothing; it takes part in the exchange with weight 0
            images, labels = images.new_zeros(1, *images.shape[1:]), labels.new_full((1,), self.data.classes_before(self.task))
        parts = list(zip(images.chunk(self.config.accumulate), labels.chunk(self.config.accumulate), strict=True))
        total, correct = torch.zeros((), device=images.device), torch.zeros((), dtype=torch.long, device=images.device)
        for number, (part, part_labels) in enumerate(parts, start=1):
            waits = share is not None and number < len(parts)  # gradients are exchanged once, with the last part
            with self.fabric.no_backward_sync(module) if waits else nullcontext():
                loss, logits, targets = self.training_loss(module, part, part_labels)
                if len(parts) > 1:
                    loss = loss * (len(part) / len(images))
                if share is not None:
                    loss = loss * share
                if number == 1:  # not sooner: the forward pass would take the old gradients' memory, and the new ones have to find some
                    module.zero_grad()
                self.fabric.backward(loss)
            total += loss.detach()
            correct += (logits.detach().argmax(dim=1) == targets).sum()
        return total, correct if share is None else correct * (share > 0)

    # Optimisation --------------------------------------------------------------------------------------------

    def freeze_backbone(self) -> None:
        """Decide once which of the backbone's parameters train."""
        frozen_layers = self.config.freeze_blocks or -1  # the embedding is layer 0, the first block layer 1
        layers = self.net.backbone.layer_of_parameter() if frozen_layers > 0 else {}
        for name, parameter in self.net.backbone.model.named_parameters():
            in_frozen_layer = layers.get(name, frozen_layers + 1) <= frozen_layers
            parameter.requires_grad_(self.trains(name) and not in_frozen_layer)

    def trains(self, name: str) -> bool:
        """Whether the backbone's parameter `name` (timm's) trains. The Slow Learner trains all, or none at rate 0."""
        return not self.frozen_backbone and self.config.bcb_lrscale > 0

    @property
    def backbone_trains(self) -> bool:
        return any(p.requires_grad for p in self.net.backbone.parameters())

    def parameter_groups(self, task: int) -> list[dict[str, Any]]:
        """SGD's groups with their learning rates: backbone lr * bcb_lrscale, new head lr (SLCA section 3.2)."""
        return [*self.backbone_groups(self.config.lr * self.config.bcb_lrscale),
                {"params": list(self.net.heads[task].parameters()), "lr": self.config.lr}]

    def backbone_groups(self, lr: float, wanted: Callable[[str], bool] = lambda name: True) -> list[dict[str, Any]]:
        """The backbone's trained parameters whose name is `wanted`, at `lr`; one group per layer with `layer_decay`."""
        named = [(name, p) for name, p in self.net.backbone.model.named_parameters() if p.requires_grad and wanted(name)]
        if self.config.layer_decay is None:
            return [{"params": [p for _, p in named], "lr": lr}] if named else []
        layers = self.net.backbone.layer_of_parameter()
        top = max(layers.values())
        groups: dict[int, list[nn.Parameter]] = {}
        for name, parameter in named:
            groups.setdefault(layers[name], []).append(parameter)
        return [{"params": group, "lr": lr * self.config.layer_decay ** (top - layer)} for layer, group in sorted(groups.items())]

    def make_optimizer(self, task: int) -> torch.optim.Optimizer:
        """A new SGD for each task, as in the release."""
        return torch.optim.SGD(self.parameter_groups(task), lr=self.config.lr, momentum=self.config.momentum,
                               weight_decay=self.config.weight_decay, fused=fuses_sgd(self.fabric.device))

    def learning_rate(self, base_lr: float, epoch: int) -> float:
        """A group's learning rate in `epoch`; multi-step here."""
        return multistep(base_lr, epoch, self.config.milestones, self.config.lrate_decay)

    # Features and evaluation ---------------------------------------------------------------------------------

    def extract(self, split: str, task: int) -> tuple[Tensor, Tensor]:
        """Features (N, D) float32 and labels (N,) of one task's images under the test transform.

        Each process extracts its part of the images; all get the features of every image, once, in the data's order.
        Kept while they stay true: a frozen backbone's for the whole run, test features until the next training.
        """
        key = (split, task)
        if key in self.feature_cache:
            return self.feature_cache[key]
        found = self._extract_pass(split, tasks=task)
        if split == "test" or not self.backbone_trains:
            self.feature_cache[key] = found
        return found

    def extract_images(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """The same of the training images at `indices` (as `DataManager.task_indices` numbers them), never kept."""
        return self._extract_pass("train", indices=indices)

    @torch.no_grad()  # not inference mode: what a method keeps of it may meet autograd later
    def _extract_pass(self, split: str, **which: Any) -> tuple[Tensor, Tensor]:
        was_training = self.net.training
        self.net.eval()
        features, labels = [], []
        batch_size = self.config.test_batch_size or self.config.batch_size
        for images, targets in self.data.batches(split, batch_size=batch_size, augment=False, **which):
            with self.fabric.autocast():
                features.append(self.features(self.fabric.to_device(images)).float())
            labels.append(targets)
        self.net.train(was_training)
        own = torch.cat(features) if features else torch.zeros(0, self.net.backbone.dim, device=self.fabric.device)
        check_finite(own, self.config.precision)
        own_labels = torch.cat(labels) if labels else torch.zeros(0, dtype=torch.long)
        return gather_rows(self.fabric, own), gather_rows(self.fabric, own_labels.to(self.fabric.device))

    def features(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) -> features (N, D)."""
        return self.net.features(images)

    def scores(self, features: Tensor) -> Tensor:
        """Features (N, D) -> one score per class seen so far (N, K); the largest wins."""
        return self.net.classify(features)

    def probabilities(self, features: Tensor) -> Tensor:
        """Features (N, D) -> probabilities of the classes (N, K), domain-incremental (N, C)."""
        return (self.fold_domains(self.scores(features)) / self.temperature).softmax(dim=1)

    @torch.inference_mode()
    def evaluate(self, task: int, split: str = "test") -> Evaluation:
        """Accuracies on the images of tasks 0..task, over all classes seen so far."""
        top, own, targets = [], [], []
        for i in range(task + 1):
            features, labels = self.extract(split, i)
            if not len(labels):
                continue
            scores = torch.cat([self.scores(batch) for batch in features.split(SCORED_AT_ONCE)])  # (N, K)
            first, last = self.data.classes_before(i), self.data.classes_upto(i)
            own.append(first + scores[:, first:last].argmax(dim=1))
            top.append(self.best_classes(scores))
            targets.append(labels)
        return evaluate_predictions(
            torch.cat(top).cpu().numpy(), torch.cat(targets).cpu().numpy(), torch.cat(own).cpu().numpy(),
            self.data.task_of_class, task=task, known_classes=self.data.classes_before(task), period=self.data.label_period)

    @torch.inference_mode()
    def accuracy_on_all_domains(self) -> float | None:
        """Domain-incremental: percent right on the test images of all domains, of those still to come too; else None."""
        if self.data.label_period is None:
            return None
        correct = count = 0
        for domain in range(self.data.num_tasks):
            features, labels = self.extract("test", domain)
            for batch, targets in zip(features.split(SCORED_AT_ONCE), labels.split(SCORED_AT_ONCE), strict=True):
                correct += int((self.best_classes(self.scores(batch))[:, 0] == targets % self.data.label_period).sum())
            count += len(labels)
        return 100 * correct / max(count, 1)

    def best_classes(self, scores: Tensor) -> Tensor:
        """The up to five best classes, best first (N, k). Domain-incremental: of all heads modulo the classes."""
        scores = self.fold_domains(scores)
        return scores.topk(min(TOP_K, scores.shape[1]), dim=1).indices

    def fold_domains(self, scores: Tensor) -> Tensor:
        """Domain-incremental: one score per class, the best of its domains, (N, T * C) -> (N, C). Else unchanged."""
        period = self.data.label_period
        return scores if period is None else scores.view(len(scores), -1, period).amax(dim=1)

    # State ---------------------------------------------------------------------------------------------------

    def extra_state(self) -> dict[str, Tensor]:
        """Tensors beside the network that the next task needs; empty here."""
        return {}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `extra_state` gave."""

    def epoch_state(self) -> dict[str, Tensor]:
        """Tensors that change between the epochs of a task and that its next epoch needs; empty here."""
        return {}

    def load_epoch_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `epoch_state` gave; `state` may hold the optimiser's tensors too."""

    def network_state(self) -> dict[str, Tensor]:
        """The network's tensors that can differ from the pre-trained ones: frozen ones are left out."""
        frozen = {name for name, p in self.net.named_parameters() if not p.requires_grad and name.startswith("backbone.")}
        return {name: tensor for name, tensor in self.net.state_dict().items() if name not in frozen}

    def frozen_state(self) -> dict[str, Tensor]:
        """The pre-trained tensors that a checkpoint leaves out; their checksum is kept instead."""
        trained = self.network_state()
        return {name: tensor for name, tensor in self.net.state_dict().items() if name not in trained}

    def load_network_state(self, state: Mapping[str, Tensor], task: int) -> None:
        """Restore a network that has learned tasks 0..task."""
        while self.has_heads and len(self.net.heads) <= task:
            self.net.add_head(self.data.task_sizes[len(self.net.heads)])
        for head in self.net.heads:
            head.requires_grad_(False)
        self.load_trained(state)
        self.task = task
        self.feature_cache.clear()

    def load_trained(self, state: Mapping[str, Tensor]) -> None:
        """Copy what `network_state` gave into the network, whose heads are there already."""
        missing, unexpected = self.net.load_state_dict(state, strict=False)
        assert not unexpected, f"checkpoint has unknown tensors {unexpected[:5]}"
        absent = [name for name in missing if name not in self.frozen_state()]
        assert not absent, f"checkpoint lacks tensors {absent[:5]}"

    def planned_statistics(self, classes: int, images_per_class: int | None) -> int:
        """Bytes of statistics that `classes` classes will take, for a dry run; `images_per_class` None: not known."""
        return 0

    def planned_images(self, task: int, new: float) -> float:
        """Images that go forward and backward in one epoch of `task`, which has `new` images of its own; for a dry run."""
        return new if self.has_heads else 0.0

    def memory_bytes(self) -> dict[str, int]:
        """What the learner keeps between tasks, in bytes: images, features, statistics, parameters."""
        return {"images": 0, "features": 0, "statistics": 0,
                "parameters": sum(t.nbytes for t in self.network_state().values())}
