"""What every method that keeps Gaussians may switch on: how features are read, statistics that follow the backbone, distillation
of the features, and a read-out of the Gaussians. A parent, not a method; SLCA adds Classifier Alignment (models/slca/slca.py).

All of it goes beyond the SLCA papers and is off by default; docs/beyond.md has the mathematics and what was measured.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from convs.backbones import Backbone
from convs.network import OwnTaskWithFeatures
from models.base import BaseLearner
from models.slca.discriminants import fit_temperature
from models.slca.drift import DriftSettings, DriftSums, distance_from_identity, with_anchors
from models.slca.gaussians import ClassGaussians
from models.slca.readout import ReadoutSettings, make_readout
from utils.config import MethodSettings
from utils.errors import UserError
from utils.rng import torch_generator
from utils.run.monitor import Monitor


class GaussianSettings(DriftSettings, ReadoutSettings, MethodSettings):
    """The statistics, and what is done with them."""

    ca_ridge: float = Field(1e-4, gt=0.0, description="added to the diagonal of each class's covariance")
    ca_cov: Literal["full", "lowrank", "diag", "shared"] = Field("full",
        description="covariance of a class: full (exact), lowrank (ca_rank directions, the rest "
        "as noise), diag (one variance per dimension) or shared (one of all classes); docs/scale.md has their cost in accuracy")
    ca_rank: int | None = Field(None, ge=1, le=100_000,
        description="leading directions kept of each class's covariance; default all, with ca_cov lowrank 64")
    stats_dtype: Literal["float32", "float16"] = Field("float32",
        description="in which the covariances' factors are stored; float16 halves them")
    features: Literal["cls", "cls+mean"] = Field("cls",
        description="what statistics and read-out see: the backbone's feature, or beside it the "
        "mean of the patch tokens (needs a readout other than ca)")
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
    def _heads_read_the_class_token(cls, value: str, info: ValidationInfo) -> str:
        if value == "cls+mean" and info.data.get("readout") == "ca":
            raise ValueError("'cls' while readout is 'ca' (alignment trains the heads, which read the class token alone), "
                             "or set readout to rgda, lda, qda or ncm")
        return value


class GaussianLearner(BaseLearner):
    """Keeps one Gaussian per class seen, of the features of its training images under the test transform."""

    Settings = GaussianSettings

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        c = self.config
        if c.features == "cls+mean" and not self.net.backbone.reads_class_token:
            raise UserError(f"features: got 'cls+mean', but {type(self.net.backbone.model).__name__} does not read its feature from a "
                            "class token; use a ViT that does, or features 'cls'")
        # one per class seen; they stay as they were when the class was learned, unless `drift` moves them
        self.gaussians = ClassGaussians(c.ca_ridge, cov=c.ca_cov, rank=c.ca_rank, dtype=getattr(torch, c.stats_dtype))
        self.readout = make_readout(c)
        self.backbone_before: Backbone | None = None  # as the task before left it; only while a task is learned, for `drift` and `kd`

    @classmethod
    def title_of(cls, config: GaussianSettings) -> str:
        """The method, with what is switched on behind it: "SLCA + RGDA, cls+mean, drift"."""
        frozen = "Frozen " if config.bcb_lrscale == 0 else ""
        readout = "" if config.readout == "ca" else f" + {config.readout.upper()}"
        switches = [config.features] * (config.features != "cls") + ["drift"] * (config.drift != "none") + ["kd"] * (config.kd > 0)
        return ", ".join([f"{frozen}{cls.title}{readout}", *switches])

    def begin_task(self, task: int) -> None:
        super().begin_task(task)
        if task > 0 and self.backbone_trains and (self.config.drift != "none" or self.config.kd > 0):
            self.backbone_before = copy.deepcopy(self.net.backbone).requires_grad_(False).eval()

    def end_task(self, task: int, monitor: Monitor) -> None:
        self.update_statistics(task, monitor)
        self.fit_temperature(task)

    def scores(self, features: Tensor) -> Tensor:
        return self.readout.scores(self.net, features)

    # Statistics ----------------------------------------------------------------------------------------------

    def update_statistics(self, task: int, monitor: Monitor) -> None:
        """Move the old classes' statistics with the backbone, take those of the new classes, read the classifier from all."""
        with monitor.stage("statistics"):
            if self.config.drift != "none" and self.backbone_before is not None:
                self.follow_backbone(task, monitor)
            self.backbone_before = None
            self.collect_statistics(task, monitor)
            self.readout.refresh(self.gaussians)
            if not self.readout.tells_apart(self.gaussians):
                monitor.log(f"warning: readout {self.config.readout} gives every class the same score, so the first one always wins: "
                            f"ca_ridge ({self.gaussians.ridge:g}) or the features' variances are too large for float32; lower ca_ridge "
                            "(1e-4 is usual), or find out what makes the features so large (lr, the pre-trained weights)")

    def collect_statistics(self, task: int, monitor: Monitor) -> None:
        """One Gaussian for each of the task's classes, from one pass over its training images."""
        features, labels = self.extract("train", task)
        classes = self.stream.classes_of(task)
        thin = self.gaussians.fit(features, labels, classes)
        if thin:
            monitor.log(f"statistics: {len(thin)} of {len(classes)} classes have no more images than the {features.shape[1]} "
                        f"feature dimensions; their covariances are regularised by the ridge {self.gaussians.ridge:g}")

    @torch.no_grad()
    def follow_backbone(self, task: int, monitor: Monitor) -> None:
        """Move the statistics of all old classes by the linear map that the new images show (models/slca/drift.py)."""
        c, device = self.config, self.fabric.device
        generator = torch_generator(c.torch_seed, "anchors", task, self.fabric.global_rank, device=device)
        sums = DriftSums(self.gaussians.means().shape[1], device)
        self.net.eval()
        for images, _ in self.data.batches("train", task, batch_size=c.test_batch_size or c.batch_size, augment=False):
            images = self.fabric.to_device(images)
            for view in with_anchors(images, generator) if c.drift_anchors else [images]:
                with self.fabric.autocast():
                    sums.add(self.features_of(self.backbone_before, view), self.features(view))
        sums.add_processes(self.fabric)
        operator = sums.operator(c.rho)
        self.gaussians.transport(operator)
        monitor.log(f"drift: the statistics of {len(self.gaussians)} old classes follow the backbone, "
                    f"|W - I| / |I| = {distance_from_identity(operator):.3g}")

    def features(self, images: Tensor) -> Tensor:
        return super().features(images) if self.config.features == "cls" else self.features_of(self.net.backbone, images)

    def features_of(self, backbone: Backbone, images: Tensor) -> Tensor:
        """What statistics and read-out see of images (N, C, H, W): (N, D), or (N, 2 D) with the mean patch token."""
        return backbone(images) if self.config.features == "cls" else backbone.class_and_mean(images)

    @torch.inference_mode()
    def fit_temperature(self, task: int) -> None:
        """Temperature of `probabilities` from the validation images of this task, the only ones at hand; 1 without any."""
        self.temperature = 1.0
        if self.config.val_fraction and self.data.count("val", task):
            features, labels = self.extract("val", task)
            period = self.stream.label_period
            self.temperature = fit_temperature(self.fold_domains(self.scores(features)), labels if period is None else labels % period)

    # Distillation of the features ----------------------------------------------------------------------------

    @property
    def distils(self) -> bool:
        return self.config.kd > 0 and self.backbone_before is not None

    def training_module(self, task: int) -> nn.Module:
        return OwnTaskWithFeatures(self.net, task) if self.distils else super().training_module(task)

    def training_loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """With `kd`: + kd * mean squared distance to the features of the backbone before the task."""
        if not self.distils:
            return super().training_loss(module, images, labels)
        logits, features = module(images)  # (N, C_t), (N, D)
        with torch.no_grad(), self.fabric.autocast():
            before = self.backbone_before(images)
        targets = labels - self.stream.classes_before(self.task)
        return self.classification_loss(logits, targets) + self.config.kd * F.mse_loss(features, before), logits, targets

    # State ---------------------------------------------------------------------------------------------------

    def extra_state(self) -> dict[str, Tensor]:
        return {**{f"gaussians.{k}": v for k, v in self.gaussians.state_dict().items()},
                "temperature": torch.tensor(self.temperature, dtype=torch.float64)}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        self.gaussians.load_state_dict(part_of_state(state, "gaussians."))
        self.readout.refresh(self.gaussians)
        self.temperature = state["temperature"].item()

    def planned_statistics(self, classes: int, images_per_class: int | None) -> int:
        dim = self.net.backbone.dim * (2 if self.config.features == "cls+mean" else 1)
        return self.gaussians.planned_bytes(classes, images_per_class, dim) if images_per_class is not None else 0

    def memory_bytes(self) -> dict[str, int]:
        return {**super().memory_bytes(), "statistics": self.gaussians.nbytes()}


def part_of_state(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries under `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
