"""What every method that keeps Gaussians may switch on: how features are read, adaptation in the first task, distillation of the
features, a read-out of the Gaussians, and statistics that follow the backbone (models/slca/moving_backbone.py).

A parent, not a method; SLCA adds Classifier Alignment (models/slca/slca.py). All of it goes beyond the SLCA papers and is off by
default; docs/beyond.md has the mathematics and what was measured.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from convs.backbones import Backbone
from convs.network import OwnTaskWithFeatures
from convs.token_features import TokenBackbone
from convs.views import mean_over_views
from models.base import KnownRegion
from models.evaluation import plain_batches
from models.first_session import AdaptsFirst, PartSettings
from models.shared_features import of_parent
from models.slca.deployed import DeployedSettings
from models.slca.drift import DriftSettings
from models.slca.gaussians import ClassGaussians
from models.slca.moving_backbone import MovingBackbone
from models.slca.readout import ReadoutSettings, make_readout
from models.slca.unknown import GaussianRegion, drawn_features
from models.stage1 import AfterEpoch, TrainingState
from models.unknown import EnergyRegion
from utils.config import MethodSettings
from utils.data.data_manager import Batches
from utils.errors import UserError
from utils.rng import torch_generator
from utils.run.monitor import Monitor

MANY_TAKEN = 0.5  # share of held-out images of the new task that old classes take, above which the run warns


class GaussianSettings(DeployedSettings, DriftSettings, ReadoutSettings, PartSettings, MethodSettings):
    """The statistics, and what is done with them."""

    ca_ridge: float = Field(1e-4, gt=0.0, description="added to the diagonal of each class's covariance")
    ca_cov: Literal["full", "lowrank", "diag", "shared"] = Field("full",
        description="covariance of a class: full (exact), lowrank (ca_rank directions, the rest "
        "as noise), diag (one variance per dimension) or shared (one of all classes); docs/scale.md has their cost in accuracy")
    ca_rank: int | None = Field(None, ge=1, le=100_000,
        description="leading directions kept of each class's covariance; default all, with ca_cov lowrank 64")
    stats_dtype: Literal["float32", "float16"] = Field("float32",
        description="in which the covariances' factors are stored; float16 halves them")
    features: str | list[str] = Field("cls",
        description="what heads, statistics and read-out see, joined from one pass: cls, mean and std of the patch tokens, of an inner "
                    "block with @-2, e.g. ['cls', 'mean', 'std', 'mean@-2', 'std@-2'] or 'cls+mean+std'")
    views: Literal[1, 5, 9] = Field(1,
        description="shifted copies of an image over which its feature is averaged, for statistics, read-out and test; as many passes")
    kd: float = Field(0.0, ge=0.0,
        description="weight of the mean squared distance to the features of the backbone before the task, in stage 1")

    @field_validator("ca_rank")
    @classmethod
    def _rank_needs_a_factor(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("ca_cov") in ("diag", "shared"):
            raise ValueError(f"null with ca_cov {info.data['ca_cov']!r}; a rank belongs to full or lowrank")
        return value

    @field_validator("features")
    @classmethod
    def _some_feature(cls, value: str | list[str]) -> str | list[str]:
        if not value:
            raise ValueError("at least one part, e.g. 'cls'")
        return value

    @property
    def parts(self) -> list[str]:
        """The joined parts that `features` names."""
        return self.features.split("+") if isinstance(self.features, str) else self.features


class GaussianLearner(MovingBackbone):
    """Keeps one Gaussian per class seen, of the features of its training images under the test transform."""

    Settings = GaussianSettings
    config: GaussianSettings
    takes_known_classes: ClassVar = True
    grows: ClassVar[bool] = False  # whether tasks add parameters to the backbone, so that no older state of it has them all

    def __init__(self, config: GaussianSettings, *args, **kwargs) -> None:
        refuse_contradictions(config, type(self))
        super().__init__(config, *args, **kwargs)
        c = self.config
        self.gaussians = ClassGaussians(c.ca_ridge, cov=c.ca_cov, rank=c.ca_rank, dtype=getattr(torch, c.stats_dtype))
        self.readout = make_readout(c)

    @classmethod
    def title_of(cls, config: GaussianSettings) -> str:
        """The method, with what is switched on behind it: "SLCA + RGDA, cls+mean, drift"."""
        frozen = "Frozen " if config.bcb_lrscale == 0 else ""
        readout = "" if config.readout == "ca" else f" + {config.readout.upper()}"
        switches = ([f"first session: {config.first_session}"] * (config.first_session != "none")
                    + ["+".join(config.parts)] * (config.parts != ["cls"]) + [f"move {config.move}"] * (config.move != "trained")
                    + [f"{config.views} views"] * (config.views > 1) + ["drift"] * (config.drift != "none") + ["kd"] * (config.kd > 0))
        return ", ".join([f"{frozen}{cls.title}{readout}", *switches])

    def prepare_backbone(self, backbone: Backbone) -> Backbone:
        backbone = super().prepare_backbone(backbone)
        return backbone if self.config.parts == ["cls"] else TokenBackbone(backbone, self.config.parts)

    def end_task(self, task: int, monitor: Monitor) -> None:
        self.update_statistics(task, monitor)

    def needs_stage1(self) -> bool:
        """Whether stage 1 of the task begun trains anything that is read later: the backbone, or heads that classify."""
        return self.backbone_trains or self.readout.uses_heads

    def train(self, task: int, monitor: Monitor, start: TrainingState | None = None, after_epoch: AfterEpoch | None = None) -> None:
        if self.needs_stage1():
            super().train(task, monitor, start, after_epoch)
        elif self.config.epochs > 0:
            monitor.log(f"task {task + 1}: no stage 1, since the backbone is frozen and readout {self.config.readout!r} reads no head")

    def planned_images(self, task: int, new: float) -> float:
        trains = self.adapts(task) if self.config.first_session != "none" else self.backbone_trains
        return super().planned_images(task, new) if trains or self.readout.uses_heads else 0.0

    def statistics_batches(self, task: int) -> Batches | None:
        return plain_batches(self, "train", tasks=task)

    def features(self, images: Tensor) -> Tensor:
        """Features (N, D), averaged over shifted copies with `views`. Training, distillation and drift see the image alone: a linear
        map of its features is that of their average too.
        """
        return mean_over_views(self.net.features, images, self.config.views)

    def feature_recipe(self) -> Mapping[str, Any] | None:
        return {"views": self.config.views} if of_parent(self, GaussianLearner) else None

    def scores(self, features: Tensor) -> Tensor:
        return self.readout.scores(self.net, features)

    def known_region(self, score: str = "distance") -> KnownRegion | None:
        if not any(g.count for g in self.gaussians.classes):
            return None
        if score == "distance":
            return GaussianRegion(self.gaussians)
        return EnergyRegion(self.scores, partial(drawn_features, self.gaussians))

    @property
    def classifies_while_training(self) -> bool:
        """A classifier that is read from the Gaussians knows a class when its task ends."""
        return self.readout.uses_heads

    # Statistics ----------------------------------------------------------------------------------------------

    def update_statistics(self, task: int, monitor: Monitor) -> None:
        """Deploy the trained backbone, move the old classes' statistics with it, take those of the new classes, read the classifier."""
        with monitor.stage("statistics"):
            self.measured = {}
            if self.backbone_before is not None:
                operator = self.deploy(task, monitor)
                if task > 0 and self.measured.get("share") != 0:
                    self.follow_backbone(task, monitor, operator)
            self.backbone_before = None
            self.collect_statistics(task, monitor)
            self.readout.refresh(self.gaussians)
            if not self.readout.tells_apart(self.gaussians):
                monitor.log(f"warning: readout {self.config.readout} gives every class the same score, so the first one always wins: "
                            f"ca_ridge ({self.gaussians.ridge:g}) or the features' variances are too large for float32; lower ca_ridge "
                            "(1e-4 is usual), or find out what makes the features so large (lr, the pre-trained weights)")

    def collect_statistics(self, task: int, monitor: Monitor) -> None:
        """One Gaussian for each of the task's classes, from one pass over its training images.

        With `move: "auto"` the held-out images have served their purpose by now and are taken too.
        """
        features, labels = self.extract("train", task)
        if self.config.move == "auto" and self.data.count("val", task):
            held_out, held_out_labels = self.extract("val", task)
            features, labels = torch.cat([features, held_out]), torch.cat([labels, held_out_labels])
        classes = self.stream.classes_of(task)
        thin = self.gaussians.fit(features, labels, classes)
        if self.config.blurry is not None:
            self.take_known_classes(task)
        if thin:
            monitor.log(f"statistics: {len(thin)} of {len(classes)} classes have no more images than the {features.shape[1]} "
                        f"feature dimensions; their covariances are regularised by the ridge {self.gaussians.ridge:g}")

    def with_old_classes(self, features: Tensor, labels: Tensor, task: int) -> tuple[Tensor, Tensor]:
        """As many features of each old class as the new ones have held-out images, drawn from its Gaussian."""
        known = self.stream.classes_before(task)
        if not known:
            return features, labels
        means, count = self.gaussians.means(), max(len(labels) // self.stream.task_sizes[task], 1)
        generator = torch_generator(self.config.torch_seed, "temperature", task, device=means.device)
        drawn, classes = self.gaussians.sample(means, count, generator)
        self.gaussians.free_buffers()
        return torch.cat([features, drawn[classes < known]]), torch.cat([labels, classes[classes < known]])

    def take_known_classes(self, task: int) -> None:
        """Of a blurry stream: the task's images of known classes go into their Gaussians too."""
        indices = self.data.task_indices("again", task)
        if len(indices):
            self.pool(*self.extract_images(indices))

    def pool(self, features: Tensor, labels: Tensor) -> None:
        """More features (N, D) of known classes, labels (N,), into their Gaussians: pooled means and covariances."""
        for label in labels.unique().tolist():
            self.gaussians.update(label, features[labels == label])

    def measure_held_out(self, scores: Tensor, task: int, monitor: Monitor) -> None:
        """Share of the new task's held-out images that an old class takes, from their scores (N, K); told where it is large."""
        if task == 0 or self.stream.label_period is not None:
            return
        taken = (scores.argmax(dim=1) < self.stream.classes_before(task)).float().mean().item()
        self.measured["taken_by_old"] = taken
        told = f"{100 * taken:.1f} % of the new task's held-out images are taken for old classes"
        if taken > MANY_TAKEN:
            monitor.log(f"warning: {told} (more than {100 * MANY_TAKEN:.0f} %): the new classes are not learned well beside the old "
                        "ones. A backbone that learns faster (bcb_lrscale, epochs), more of its features (features, views) or readout "
                        "'rgda' may help")
        else:
            monitor.log(f"statistics: {told}")

    # Distillation of the features ----------------------------------------------------------------------------

    @property
    def distils(self) -> bool:
        return self.config.kd > 0 and self.task > 0 and self.backbone_before is not None

    def training_module(self, task: int) -> nn.Module:
        return OwnTaskWithFeatures(self.net, task) if self.distils else super().training_module(task)

    def training_loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """With `kd`: + kd * mean squared distance to the features of the backbone before the task."""
        if self.backbone_before is None or not self.distils:
            return super().training_loss(module, images, labels)
        logits, features = module(images)  # (N, C_t), (N, D)
        with torch.no_grad(), self.fabric.autocast():
            before = self.backbone_before(images)
        targets = labels - self.stream.classes_before(self.task)
        return self.classification_loss(logits, targets) + self.config.kd * self.feature_loss(features, before), logits, targets

    def feature_loss(self, features: Tensor, before: Tensor) -> Tensor:
        """How far the features (N, D) went from those of the backbone before the task (N, D), ()."""
        return F.mse_loss(features, before)

    def refine(self, features: Tensor, labels: Tensor, monitor: Monitor) -> None:
        """Pooled means and covariances (models/slca/gaussian.py), and the classifier read from them anew."""
        self.pool(features, labels)
        self.readout.refresh(self.gaussians)

    def join_statistics(self, other: GaussianLearner) -> None:
        if self.readout.uses_heads:
            super().join_statistics(other)
        self.gaussians.join(other.gaussians)
        self.readout.refresh(self.gaussians)

    def forget_statistics(self, labels: Collection[int]) -> None:
        self.gaussians.drop(labels)
        self.readout.refresh(self.gaussians)

    # State ---------------------------------------------------------------------------------------------------

    def diagnostics(self) -> dict[str, float]:
        """How stale the statistics were after the last task: "mean_cosine" of old means with where the backbone moved them,
        "operator_distance" |W - I| / |I|, the "share" that the deployed state moved (all where something could move), and
        the share of the new task's held-out images that are "taken_by_old" classes (with `val_fraction`).
        """
        return dict(self.measured)

    def extra_state(self) -> dict[str, Tensor]:
        return {**{f"gaussians.{k}": v for k, v in self.gaussians.state_dict().items()},
                **{f"trained.{k}": v for k, v in self.trained.tensors.items()},
                "temperature": torch.tensor(self.temperature, dtype=torch.float64)}

    def state_parts(self) -> dict[str, tuple[object, ...]]:
        return {f"gaussians.{number}.": part for number, part in enumerate(self.gaussians.parts())}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        self.gaussians.load_state_dict(part_of_state(state, "gaussians."))
        self.trained.tensors = part_of_state(state, "trained.")
        self.readout.refresh(self.gaussians)
        self.temperature = state["temperature"].item()

    def planned_statistics(self, classes: int, images_per_class: int | None) -> int:
        return 0 if images_per_class is None else self.gaussians.planned_bytes(classes, images_per_class, self.net.backbone.dim)

    def memory_bytes(self) -> dict[str, int]:
        kept = super().memory_bytes()
        return {**kept, "statistics": self.gaussians.nbytes(), "parameters": kept["parameters"] + self.trained.nbytes()}


def refuse_contradictions(c: GaussianSettings, method: type[GaussianLearner]) -> None:
    """Raises UserError for settings that do not go together, before anything is put on the backbone."""
    if c.move == "auto" and not c.val_fraction:
        raise UserError("move: 'auto' decides on held-out images, but val_fraction is 0; set val_fraction to 0.1 or so, or move to "
                        "'average' or 'trained'")
    if c.move != "trained" and method.grows:
        raise UserError(f"move: got {c.move!r}, allowed: 'trained' for {c.model_name}, whose tasks each add parts to the backbone")
    if c.first_session != "none" and method.trains is not AdaptsFirst.trains:
        raise UserError(f"first_session: got {c.first_session!r}, allowed: 'none' for {c.model_name}, whose backbone has parts of "
                        "its own; use model_name 'slca'")


def part_of_state(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries under `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
