"""The order of one task, shared by all methods; a method overrides only what its paper adds.

    prepare_backbone   once: what the method puts on the pre-trained backbone (LoRA, prompts)
    begin_task         new head; old heads frozen; the method's own set-up
    train              stage 1: epochs of SGD on the task's images (models/stage1.py)
    end_task           statistics, alignment, memory: whatever follows training
    evaluate           test images of all classes seen so far -> accuracies (models/evaluation.py)

What a method must keep to is one page, docs/add_a_method.md: in short, `begin_task` is deterministic (calling it again on
the state after the previous task gives the same network), random numbers come from named streams (utils/rng.py), and all
that the next task needs is in `network_state` and `extra_state`. That is what makes a run resumable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Protocol, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from convs.backbones import Backbone
from convs.heads import HeadFactory, linear_head
from convs.network import IncrementalNet, OwnTask
from models import evaluation, shared_features, stage1
from models.known_classes import KnownClasses
from models.shared_features import FeatureBatches, TaskFeatures
from models.stage1 import AfterEpoch, Batch, TrainingState
from utils.config import MethodSettings
from utils.data.data_manager import Batches, DataManager
from utils.data.feature_store import FeatureStore
from utils.data.stream import TaskStream
from utils.formulas.calibration import fit_temperature
from utils.formulas.metrics import Evaluation
from utils.formulas.schedules import multistep
from utils.machine.sgd import make_sgd
from utils.rng import seed_of, torch_generator
from utils.run.monitor import Monitor

FLOAT_BYTES = 4  # of a float32, which statistics and parameters are kept in


class HasStream(Protocol):
    """The least that a learner is made with: a prediction and a dry run have tasks and no images.

    To learn and to be evaluated it needs all of `utils.data.data_manager.DataManager`.
    """

    stream: TaskStream


class KnownRegion(Protocol):
    """Where the images of the classes seen so far lie among the features (models/unknown.py)."""

    def distances(self, features: Tensor) -> Tensor:
        """Features (N, D) -> (N,), larger is less known."""

    def threshold(self, share: float, torch_seed: int = 1) -> float:
        """The distance within which `share` of the known classes' images lie."""


class BaseLearner(KnownClasses):
    """A continual learner: the order of a task and its hooks.

    What a checkpoint holds of it is models/state.py; what may be done to classes that it knows, models/known_classes.py.

    Args:
        config: the method's resolved settings, an instance of `Settings`; never written to.
        data: tasks, labels and batches.
        net: backbone and heads (heads are added task by task).
        fabric: device, precision and processes.
    """

    Settings: ClassVar[type[MethodSettings]] = MethodSettings  # common keys and the method's own
    title: ClassVar[str] = ""  # name in tables
    rehearsal_free: ClassVar[bool] = True  # keeps no image of an old task
    defaults: ClassVar[dict[str, Any]] = {}  # common settings whose default depends on the method
    frozen_backbone: ClassVar[bool] = False  # the pre-trained weights never move; bcb_lrscale can only be 0
    not_extended: ClassVar[str] = ""  # why no task can be added once the planned ones are learned; empty: it can
    trains_on_features: ClassVar[bool] = False  # stage 1 sees an image through `net.backbone` alone; a frozen one's feature will do
    has_heads: bool = True  # False: classifies by statistics of the features; no head, no stage 1, epochs are ignored
    scores_are_logits: ClassVar[bool] = True  # or log densities; False where `scores` are probabilities, cosines or distances

    def __init__(self, config: MethodSettings, data: HasStream, net: IncrementalNet, fabric: Fabric) -> None:
        self.config = config
        self.check_stream()
        self.data = cast(DataManager, data)  # of a prediction or a dry run the stream alone is there
        self.stream = data.stream
        self.fabric = fabric
        net.backbone = self.prepare_backbone(net.backbone)
        net.make_head = self.head_factory()
        self.net = net.to(fabric.device)
        self.task = -1  # the task begun last; -1 before the first
        self.epoch = 0  # of stage 1, kept by it
        self.step = 0  # of the epoch, kept by stage 1
        self.after_step: Callable[[Tensor], None] | None = None  # gets each batch's labels; measures inside a task (models/anytime.py)
        self.temperature = 1.0  # of `probabilities`, fitted on validation images where there are any
        self.ever_trained: set[str] = set()  # names in `net` of the backbone's parameters that trained in some task
        self.feature_cache: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}  # (split, task) -> features, labels
        self.feature_stores: dict[str, FeatureStore] = {}  # what other runs share (models/shared_features.py), by recipe
        self.task_features: TaskFeatures | None = None  # of the task's training images, while stage 1 reads them instead
        self.choose_trained()

    @classmethod
    def title_of(cls, config: Any) -> str:
        """The name in tables of a run with `config`, an instance of `Settings`."""
        return cls.title

    # One task ------------------------------------------------------------------------------------------------

    def learn_task(self, task: int, monitor: Monitor, start: TrainingState | None = None, after_epoch: AfterEpoch | None = None) -> None:
        """Learn the classes of `task`; the order that every method shares.

        Args:
            start: where an interrupted run was inside this task.
            after_epoch: called after every epoch but the last, with what a checkpoint needs.
        """
        width = self.feature_dim if self.feature_cache else None
        self.begin_task(task)
        if width is not None and width != self.feature_dim:  # more passes than before, also where nothing trains
            self.feature_cache.clear()
        self.ever_trained |= self.trained_now()
        if self.has_heads:
            with monitor.stage("train"):
                if self.backbone_trains:
                    self.feature_cache.clear()
                self.train(task, monitor, start, after_epoch)
        self.end_task(task, monitor)
        self.judge_held_out(task, monitor)
        self.feature_cache.pop(("train", task), None)  # of no use to later tasks

    def begin_task(self, task: int) -> None:
        """Add the head of `task` and freeze the older ones."""
        self.task = task
        if self.has_heads:
            self.net.add_head(self.stream.task_sizes[task], torch_generator(self.config.torch_seed, "head", task))
        for head in self.net.heads[:-1]:
            head.requires_grad_(False)

    def train(self, task: int, monitor: Monitor, start: TrainingState | None = None, after_epoch: AfterEpoch | None = None) -> None:
        """Stage 1: `epochs` passes over the task's images."""
        with shared_features.instead_of_images(self, task, self._plain_features):
            stage1.train(self, task, monitor, start, after_epoch)

    def _plain_features(self, indices: np.ndarray) -> Tensor:
        """Features (n, D) of the backbone alone of the training images at `indices`."""
        return evaluation.computed_pass(self, "train", features=self.net.features, indices=indices)[0]

    def end_task(self, task: int, monitor: Monitor) -> None:
        """What a method does after training: statistics, alignment, choosing exemplars."""

    # The network ---------------------------------------------------------------------------------------------

    def head_factory(self) -> HeadFactory:
        """What makes the head of each task (convs/heads.py); a function or a partial, which the network keeps and copies."""
        return linear_head

    def prepare_backbone(self, backbone: Backbone) -> Backbone:
        """Put on the pre-trained backbone what the method adds to it; called once, before anything else. Raises UserError."""
        return backbone

    def trains(self, name: str) -> bool:
        """Whether the backbone's parameter `name` (timm's) trains. The Slow Learner trains all, or none at rate 0."""
        return not self.frozen_backbone and self.backbone_scale > 0

    def choose_trained(self) -> None:
        """Let exactly the backbone's parameters train that `trains` names and that `freeze_blocks` does not freeze."""
        frozen_layers = self.config.freeze_blocks or -1  # the embedding is layer 0, the first block layer 1
        layers = self.net.backbone.layer_of_parameter() if frozen_layers > 0 else {}
        for name, parameter in self.net.backbone.model.named_parameters():
            in_frozen_layer = layers.get(name, frozen_layers + 1) <= frozen_layers
            parameter.requires_grad_(self.trains(name) and not in_frozen_layer)
        self.ever_trained |= self.trained_now()

    def trained_now(self) -> set[str]:
        """Names in `net` of the backbone's parameters that train at present."""
        return {name for name, p in self.net.named_parameters() if p.requires_grad and name.startswith("backbone.")}

    @property
    def backbone_scale(self) -> float:
        """The backbone's learning rate as a multiple of lr."""
        assert self.config.bcb_lrscale is not None, f"{type(self).__name__}.defaults has no bcb_lrscale"
        return self.config.bcb_lrscale

    @property
    def backbone_trains(self) -> bool:
        return any(p.requires_grad for p in self.net.backbone.parameters())

    # Stage 1: what models/stage1.py asks a method for ----------------------------------------------------------

    def training_batches(self, task: int, epoch: int) -> Iterable[Batch]:
        """Augmented images (B, C, H, W) and labels (B,) of one epoch, in an order drawn for (task, epoch).

        What a method adds behind them, B rows each, is cut into parts with them and handed to `training_loss`. While an epoch's
        last batches are computed on, worker processes make the first ones of what follows.
        """
        last = epoch + 1 == self.config.epochs
        return self.epoch_batches(task, epoch).before(self.statistics_batches(task) if last else self.epoch_batches(task, epoch + 1))

    def epoch_batches(self, task: int, epoch: int) -> Batches | FeatureBatches:
        """The pass of `training_batches`; the same whenever it is asked for while the task is trained."""
        shuffle_seed = seed_of(self.config.torch_seed, "train", task, epoch)
        if self.task_features is not None:
            return self.task_features.batches(self.config.batch_size, shuffle_seed)
        return self.data.batches("train", task, batch_size=self.config.batch_size, augment=True, shuffle_seed=shuffle_seed)

    def statistics_batches(self, task: int) -> Batches | None:
        """The pass over images that follows the task's training, where the method has one; it is made ahead."""
        return None

    def images_per_epoch(self, task: int) -> int:
        """Images that `training_batches` gives in one epoch, over all processes."""
        return self.data.count("train", task)

    def training_module(self, task: int) -> nn.Module:
        """The module whose forward stage 1 runs: images -> the new task's own logits (N, C_t)."""
        return OwnTask(self.net, task)

    def training_loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss of one batch, and the logits and targets from which training accuracy is counted."""
        logits = module(images)  # (N, C_t)
        targets = labels - self.stream.classes_before(self.task)
        return self.classification_loss(logits, targets), logits, targets

    def classification_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of logits (N, C) and targets (N,); cross-entropy."""
        return F.cross_entropy(logits, targets)

    def after_backward(self, module: nn.Module) -> None:
        """Between the gradient of the batch's loss and the step; a method may change the gradients here."""

    def after_epoch(self, task: int, epoch: int) -> None:
        """After every epoch, before its checkpoint; a method may renew here what its next epoch needs."""

    def parameter_groups(self, task: int) -> list[dict[str, Any]]:
        """SGD's groups with their learning rates: backbone lr * bcb_lrscale, new head lr (SLCA section 3.2)."""
        return [*self.backbone_groups(self.config.lr * self.backbone_scale),
                {"params": list(self.net.heads[task].parameters()), "lr": self.config.lr, "name": "head"}]

    def backbone_groups(self, lr: float, wanted: Callable[[str], bool] = lambda name: True, name: str = "backbone") -> list[dict[str, Any]]:
        """The backbone's trained parameters whose name is `wanted`, at `lr`; one group per layer with `layer_decay`."""
        return stage1.backbone_groups(self.net.backbone, lr, wanted, self.config.layer_decay, name)

    def make_optimizer(self, task: int) -> torch.optim.Optimizer:
        """A new SGD for each task, as in the release."""
        c = self.config
        return make_sgd(self.parameter_groups(task), self.fabric.device, lr=c.lr, momentum=c.momentum, weight_decay=c.weight_decay)

    def learning_rate(self, base_lr: float, epoch: int) -> float:
        """A group's learning rate in `epoch`; multi-step here."""
        return multistep(base_lr, epoch, self.config.milestones, self.config.lrate_decay)

    # Evaluation and prediction -------------------------------------------------------------------------------

    @property
    def classifies_while_training(self) -> bool:
        """Whether `scores` knows the new classes before the task ends, so that accuracy inside a task means something."""
        return self.has_heads

    @property
    def feature_dim(self) -> int:
        """D of `features`."""
        return self.net.backbone.dim

    def features(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) -> features (N, D)."""
        return self.net.features(images)

    def feature_recipe(self) -> Mapping[str, Any] | None:
        """What beside the backbone decides `features`, in JSON, for those that runs share (`feature_cache`); None: they are not shared."""
        return shared_features.PLAIN if shared_features.of_parent(self, BaseLearner) else None

    def scores(self, features: Tensor) -> Tensor:
        """Features (N, D) -> one score per class seen so far (N, K); the largest wins."""
        return self.net.classify(features)

    def probabilities(self, features: Tensor) -> Tensor:
        """Features (N, D) -> probabilities of the classes (N, K), domain-incremental (N, C)."""
        return self.to_probabilities(self.scores(features))

    def to_probabilities(self, scores: Tensor) -> Tensor:
        """Scores (N, K) -> probabilities of the classes (N, K), domain-incremental (N, C)."""
        return (self.fold_domains(scores) / self.temperature).softmax(dim=1)

    @torch.inference_mode()
    def judge_held_out(self, task: int, monitor: Monitor) -> None:
        """What the validation images of this task, the only ones at hand, say: the temperature of `probabilities` (1 without any)."""
        self.temperature = 1.0
        if self.config.val_fraction and self.data.count("val", task):
            features, labels = self.extract("val", task)
            self.measure_held_out(self.scores(features), task, monitor)
            features, labels = self.with_old_classes(features, labels, task)
            period = self.stream.label_period
            self.temperature = fit_temperature(self.fold_domains(self.scores(features)), labels if period is None else labels % period)

    def with_old_classes(self, features: Tensor, labels: Tensor, task: int) -> tuple[Tensor, Tensor]:
        """Features (N, D) and labels (N,) of the new task, with others of older classes where the method can make some."""
        return features, labels

    def measure_held_out(self, scores: Tensor, task: int, monitor: Monitor) -> None:
        """What a method measures of the task's validation images, from their scores (N, K)."""

    def classifier_before_alignment(self) -> Callable[[Tensor], Tensor] | None:
        """Features (N, D) -> logits (N, K) of the heads as they were before they were aligned; None where none were."""
        return None

    def known_region(self, score: str = "distance") -> KnownRegion | None:
        """What tells images of no known class by the "distance" or the "energy"; None where the method keeps nothing to tell it by."""
        return None

    def fold_domains(self, scores: Tensor) -> Tensor:
        """Domain-incremental: one score per class, the best of its domains, (N, T * C) -> (N, C). Else unchanged."""
        period = self.stream.label_period
        return scores if period is None else scores.view(scores.shape[0], -1, period).amax(dim=1)

    def extract(self, split: str, task: int) -> tuple[Tensor, Tensor]:
        """Features (N, D) float32 and labels (N,) of one task's images under the test transform; kept while they stay true."""
        return evaluation.extract(self, split, task)

    def extract_images(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """The same of the training images at `indices` (as `DataManager.task_indices` numbers them), never kept."""
        return evaluation.extract_pass(self, "train", indices=indices)

    def evaluate(self, task: int, split: str = "test") -> Evaluation:
        """Accuracies on the images of tasks 0..task, over all classes seen so far."""
        return evaluation.evaluate(self, task, split)

    def diagnostics(self) -> dict[str, float]:
        """What a method measured of itself in the last task, for log, results and report; empty here."""
        return {}

    # What it costs -------------------------------------------------------------------------------------------

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
