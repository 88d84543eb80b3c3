"""What every method that keeps Gaussians may switch on: how features are read, statistics that follow the backbone, distillation
of the features, and a read-out of the Gaussians. A parent, not a method; SLCA adds Classifier Alignment (models/slca/slca.py).

All of it goes beyond the SLCA papers and is off by default; docs/beyond.md has the mathematics and what was measured.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from convs.backbones import Backbone
from convs.network import OwnTaskWithFeatures
from convs.token_features import TokenBackbone
from convs.views import mean_over_views
from models.base import BaseLearner
from models.evaluation import plain_batches
from models.shared_features import of_parent
from models.slca.deployed import CANDIDATES, DRAWN_PER_CLASS, DeployedSettings, TrainedState, moved, put
from models.slca.discriminants import fit_temperature
from models.slca.drift import RHO, DriftSettings, DriftSums, distance_from_identity, with_anchors
from models.slca.gaussians import ClassGaussians
from models.slca.readout import Discriminant, ReadoutSettings, make_readout
from models.slca.unknown import GaussianRegion
from utils.config import MethodSettings
from utils.data.data_manager import Batches
from utils.errors import UserError
from utils.machine.distributed import gather_rows
from utils.rng import torch_generator
from utils.run.monitor import Monitor

MEASURED_IMAGES = 512  # of the new task, on which staleness is measured where nothing follows the backbone
STALE_COSINE = 0.95  # below this mean cosine the statistics are called stale


class GaussianSettings(DeployedSettings, DriftSettings, ReadoutSettings, MethodSettings):
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


class GaussianLearner(BaseLearner):
    """Keeps one Gaussian per class seen, of the features of its training images under the test transform."""

    Settings = GaussianSettings
    config: GaussianSettings

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        c = self.config
        if c.move == "auto" and not c.val_fraction:
            raise UserError("move: 'auto' decides on held-out images, but val_fraction is 0; set val_fraction to 0.1 or so, or move to "
                            "'average' or 'trained'")
        # one per class seen; they stay as they were when the class was learned, unless `drift` moves them
        self.gaussians = ClassGaussians(c.ca_ridge, cov=c.ca_cov, rank=c.ca_rank, dtype=getattr(torch, c.stats_dtype))
        self.readout = make_readout(c)
        self.backbone_before: Backbone | None = None  # the deployed one of the task before, while a task is learned
        self.trained = TrainedState()  # where the next task trains on, if that is not the deployed state
        self.measured: dict[str, float] = {}  # of the last task, see `diagnostics`

    @classmethod
    def title_of(cls, config: GaussianSettings) -> str:
        """The method, with what is switched on behind it: "SLCA + RGDA, cls+mean, drift"."""
        frozen = "Frozen " if config.bcb_lrscale == 0 else ""
        readout = "" if config.readout == "ca" else f" + {config.readout.upper()}"
        switches = (["+".join(config.parts)] * (config.parts != ["cls"]) + [f"move {config.move}"] * (config.move != "trained")
                    + [f"{config.views} views"] * (config.views > 1) + ["drift"] * (config.drift != "none") + ["kd"] * (config.kd > 0))
        return ", ".join([f"{frozen}{cls.title}{readout}", *switches])

    def prepare_backbone(self, backbone: Backbone) -> Backbone:
        return backbone if self.config.parts == ["cls"] else TokenBackbone(backbone, self.config.parts)

    def begin_task(self, task: int) -> None:
        super().begin_task(task)
        if task > 0 and self.backbone_trains:
            self.backbone_before = copy.deepcopy(self.net.backbone).requires_grad_(False).eval()
        self.trained.load_into(self.net.backbone.model)

    def end_task(self, task: int, monitor: Monitor) -> None:
        self.update_statistics(task, monitor)
        self.fit_temperature(task)

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

    def known_region(self) -> GaussianRegion:
        return GaussianRegion(self.gaussians)

    @property
    def before_task(self) -> Backbone:
        """The backbone as it was deployed before the task at hand."""
        assert self.backbone_before is not None, "the backbone does not train, or no task is being learned"
        return self.backbone_before

    # Statistics ----------------------------------------------------------------------------------------------

    def update_statistics(self, task: int, monitor: Monitor) -> None:
        """Deploy the trained backbone, move the old classes' statistics with it, take those of the new classes, read the classifier."""
        with monitor.stage("statistics"):
            self.measured = {}
            if task > 0 and self.backbone_before is not None:
                self.deploy(task, monitor)
                if self.measured.get("share") != 0:
                    self.follow_backbone(task, monitor)
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
        if thin:
            monitor.log(f"statistics: {len(thin)} of {len(classes)} classes have no more images than the {features.shape[1]} "
                        f"feature dimensions; their covariances are regularised by the ridge {self.gaussians.ridge:g}")

    def follow_backbone(self, task: int, monitor: Monitor) -> None:
        """With `drift` the statistics of all old classes move by the linear map that the new images show (models/slca/drift.py).

        Without it they stay, and how far they are off by now is measured on some of the new images, and told.
        """
        follows = self.config.drift != "none"
        operator = self.drift_operator(task) if follows else self.measured_operator(task)
        means = self.gaussians.means().to(operator)
        cosine = F.cosine_similarity(means, means @ operator).nanmean().item()
        self.measured |= {"mean_cosine": cosine, "operator_distance": distance_from_identity(operator)}
        told = f"{len(self.gaussians)} old classes: cosine of their means with where the backbone moved them {cosine:.3f}, " \
               f"|W - I| / |I| = {self.measured['operator_distance']:.3g}"
        if follows:
            self.gaussians.transport(operator)
            monitor.log(f"drift: the statistics follow the backbone. {told}")
        elif cosine < STALE_COSINE:
            monitor.log(f"warning: the statistics of old classes are stale. {told} (below {STALE_COSINE}). Let them follow with drift "
                        "'linear', move the backbone less (fewer epochs, a lower bcb_lrscale, kd 1), or keep it as it is (bcb_lrscale 0 "
                        "with readout 'rgda'); docs/own_data.md shows what each is worth")
        else:
            monitor.log(f"statistics: {told}")

    @torch.no_grad()
    def drift_operator(self, task: int) -> Tensor:
        """W (D, D) from the features of the new images, and of their anchors, before and after the task."""
        c, device, backbone_before = self.config, self.fabric.device, self.before_task
        generator = torch_generator(c.torch_seed, "anchors", task, self.fabric.global_rank, device=device)
        sums = DriftSums(self.net.backbone.dim, device)
        self.net.eval()
        for images, _ in self.data.batches("train", task, batch_size=c.test_batch_size or c.batch_size, augment=False):
            images = self.fabric.to_device(images)
            for view in with_anchors(images, generator) if c.drift_anchors else [images]:
                with self.fabric.autocast():
                    sums.add(backbone_before(view), self.net.features(view))
        sums.add_processes(self.fabric)
        return sums.operator(c.rho)

    @torch.no_grad()
    def measured_operator(self, task: int) -> Tensor:
        """The same from some of the new images alone; their features after the task are those that the statistics take anyway."""
        c = self.config
        features, labels = self.extract("train", task)
        self.feature_cache["train", task] = features, labels  # until the task ends
        count = self.data.count("train", task)
        rows = np.linspace(0, count - 1, min(count, MEASURED_IMAGES)).astype(np.int64)
        before = [features.new_empty(0, self.net.backbone.dim)]
        for images, _ in self.data.batches("train", indices=self.data.task_indices("train", task)[rows],
                                           batch_size=c.test_batch_size or c.batch_size, augment=False):
            with self.fabric.autocast():
                before.append(mean_over_views(self.before_task, self.fabric.to_device(images), c.views).float())
        sums = DriftSums(self.net.backbone.dim, self.fabric.device)
        sums.add(gather_rows(self.fabric, torch.cat(before)), features[torch.from_numpy(rows).to(features.device)])
        return sums.operator(RHO[False])

    # The deployed state --------------------------------------------------------------------------------------

    def deploy(self, task: int, monitor: Monitor) -> None:
        """Put the deployed state in place of the trained one, which is kept for the next task (models/slca/deployed.py)."""
        c = self.config
        if c.move == "trained":
            return
        model = self.net.backbone.model
        trained = self.trained.take_from(model)
        names = dict(self.before_task.model.named_parameters())
        before = {name: names[name].detach() for name in trained}
        share = c.move_share if c.move == "average" else self.best_share(task, before, trained, monitor)
        put(model, moved(before, trained, share, c.move_energy))
        self.feature_cache.clear()
        self.measured["share"] = share

    def best_share(self, task: int, before: Mapping[str, Tensor], trained: Mapping[str, Tensor], monitor: Monitor) -> float:
        """The candidate share with the best expected accuracy, if it beats staying by more than the comparison's standard error."""
        count = self.data.count("val", task)
        if not count:  # no class of the task has an image to spare
            monitor.log("move: no image of this task is held out to compare shares on; deployed at share 0")
            return 0.0
        found = {share: self.expected_accuracy(task, share, moved(before, trained, share, self.config.move_energy)) for share in CANDIDATES}
        best = max(found, key=lambda share: found[share])
        error = 100 * (2 * (found[0.0] / 100) * (1 - found[0.0] / 100) / count) ** 0.5
        share = best if found[best] - found[0.0] > error else 0.0
        monitor.log("move: expected accuracy " + ", ".join(f"{accuracy:.1f} at share {share:g}" for share, accuracy in found.items())
                    + f"; standard error {error:.1f}; deployed at share {share:g}")
        return share

    @torch.no_grad()
    def expected_accuracy(self, task: int, share: float, state: Mapping[str, Tensor]) -> float:
        """Percent right over all classes seen, expected of the backbone in `state`: new classes on held-out images, old ones on
        features drawn from their Gaussians, carried over by the drift operator with its error as noise.
        """
        c, device = self.config, self.fabric.device
        put(self.net.backbone.model, state)
        self.feature_cache.clear()
        features, labels = self.extract("train", task)
        held_out, held_out_labels = self.extract("val", task)
        gaussians = copy.deepcopy(self.gaussians)
        generator = torch_generator(c.torch_seed, "move", task, device=device)
        drawn, drawn_labels = gaussians.sample(gaussians.means(), DRAWN_PER_CLASS, generator)
        drawn = drawn.clone()
        if share > 0:
            operator = self.drift_operator(task)
            batches = self.data.batches("val", task, batch_size=c.test_batch_size or c.batch_size, augment=False)
            before = torch.cat([mean_over_views(self.before_task, self.fabric.to_device(images), c.views).float()
                                for images, _ in batches])
            before = gather_rows(self.fabric, before)
            wrong = (held_out - before @ operator.to(before)).std(dim=0)  # (D,)
            drawn = drawn @ operator.to(drawn) + wrong * torch.randn(drawn.shape, generator=generator, device=device)
            gaussians.transport(operator)
        gaussians.fit(features, labels, self.stream.classes_of(task))
        judge = Discriminant(c.rgda_a, c.rgda_g)
        judge.refresh(gaussians)
        new = (judge.scores(self.net, held_out).argmax(dim=1) == held_out_labels).float().mean()
        old = (judge.scores(self.net, drawn).argmax(dim=1) == drawn_labels).float().mean()
        known, seen = self.stream.classes_before(task), self.stream.classes_upto(task)
        return 100 * ((known * old + (seen - known) * new) / seen).item()

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
            before = self.before_task(images)
        targets = labels - self.stream.classes_before(self.task)
        return self.classification_loss(logits, targets) + self.config.kd * self.feature_loss(features, before), logits, targets

    def feature_loss(self, features: Tensor, before: Tensor) -> Tensor:
        """How far the features (N, D) went from those of the backbone before the task (N, D), ()."""
        return F.mse_loss(features, before)

    def refine(self, features: Tensor, labels: Tensor, monitor: Monitor) -> None:
        """Pooled means and covariances (models/slca/gaussian.py), and the classifier read from them anew."""
        for label in labels.unique().tolist():
            self.gaussians.update(label, features[labels == label])
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
        "operator_distance" |W - I| / |I|, and the "share" that the deployed state moved; empty where nothing could move.
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


def part_of_state(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries under `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
