"""SLCA: Slow Learner with Classifier Alignment (Zhang et al., ICCV 2023, arXiv 2303.05118).

Stage 1 (SL) is `BaseLearner` with a hundred times smaller learning rate for the backbone. Added here: a Gaussian
per class from the features after stage 1, and stage 2 (CA), which trains all heads on features drawn from them.

Differs from the authors' release: the task of a class is a table instead of c // (size of the last task), which
is wrong for tasks of different size (`compat: "release"` brings it back); covariances are kept as exact factors.

Beyond the paper, all off by default (docs/beyond.md): another `readout` of the Gaussians than the aligned heads, statistics
that follow the backbone (`drift`), class token and mean patch token as features (`features`), distillation of the
features (`kd`), alignment that starts from aligned heads (`ca_start`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convs.backbones import Backbone
from convs.network import OwnTaskWithFeatures
from models.base import FLOAT_BYTES, BaseLearner
from models.slca.alignment import Alignment
from models.slca.discriminants import GaussianDiscriminant, discriminant, fit_temperature, nearest_mean, tells_apart
from models.slca.drift import RHO, DriftSums, with_anchors
from models.slca.gaussians import ClassGaussians
from utils.config import Config
from utils.errors import UserError
from utils.formulas.schedules import cosine
from utils.machine.distributed import copy_from_first
from utils.rng import torch_generator
from utils.run.monitor import Monitor


class SLCA(BaseLearner):
    title = "SLCA"
    defaults: ClassVar = {"bcb_lrscale": 0.01}

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        c = self.config
        if c.features == "cls+mean" and not self.net.backbone.reads_class_token:
            raise UserError(f"features: got 'cls+mean', but {type(self.net.backbone.model).__name__} does not read its feature from a "
                            "class token; use a ViT that does, or features 'cls'")
        # one per class seen, never re-estimated
        self.gaussians = ClassGaussians(c.ca_ridge, cov=c.ca_cov, rank=c.ca_rank, dtype=getattr(torch, c.stats_dtype))
        self.heads_before: dict[str, Tensor] = {}  # heads as stage 1 left them, between alignment and the next task
        self.backbone_before: Backbone | None = None  # the backbone before the task, where `drift` or `kd` needs it
        self.gaussian_readout: GaussianDiscriminant | None = None  # of all classes seen, unless readout is "ca"

    @classmethod
    def title_of(cls, config: Config) -> str:
        """SLCA, with what goes beyond the papers behind it: "SLCA + RGDA, cls+mean, drift"."""
        frozen = "Frozen " if config.bcb_lrscale == 0 else ""
        readout = "" if config.readout == "ca" else f" + {config.readout.upper()}"
        switches = [config.features] * (config.features != "cls") + ["drift"] * (config.drift != "none") + ["kd"] * (config.kd > 0)
        return ", ".join([f"{frozen}{cls.title}{readout}", *switches])

    def begin_task(self, task: int) -> None:
        self.recall_heads()
        super().begin_task(task)
        if task > 0 and self.backbone_trains and (self.config.drift != "none" or self.config.kd > 0):
            self.backbone_before = copy.deepcopy(self.net.backbone).requires_grad_(False).eval()

    def end_task(self, task: int, monitor: Monitor) -> None:
        with monitor.stage("statistics"):
            if self.config.drift != "none" and self.backbone_before is not None:
                self.follow_backbone(task, monitor)
            self.backbone_before = None
            self.collect_statistics(task, monitor)
            self.gaussian_readout = self.read_gaussians()
            if self.gaussian_readout is not None and not tells_apart(self.gaussian_readout, self.gaussians.classes):
                monitor.log(f"warning: readout {self.config.readout} gives every class the same score, so the first one always wins: "
                            f"ca_ridge ({self.gaussians.ridge:g}) or the features' variances are too large for float32; lower ca_ridge "
                            "(1e-4 is usual), or find out what makes the features so large (lr, the pre-trained weights)")
        if self.aligns and task > 0:
            monitor.before_alignment(self, task)
            with monitor.stage("alignment"):
                self.align(task, monitor)
        self.temperature = self.fitted_temperature(task)

    # Read-out ------------------------------------------------------------------------------------------------

    def scores(self, features: Tensor) -> Tensor:
        """The one place where the read-out is chosen: the aligned heads, or a discriminant of the Gaussians."""
        if self.config.readout == "ca":
            return super().scores(features)
        return self.gaussian_readout(features)

    def read_gaussians(self) -> GaussianDiscriminant | None:
        """`readout` of all classes seen: rgda, lda (a = 1), qda (a = 0) or the nearest mean; None where the heads are the read-out."""
        c = self.config
        if c.readout == "ca" or not len(self.gaussians):
            return None
        if c.readout == "ncm":
            return nearest_mean(self.gaussians.classes)
        a = {"rgda": c.rgda_a, "lda": 1.0, "qda": 0.0}[c.readout]
        return discriminant(self.gaussians.classes, a=a, g=c.rgda_g, ridge=self.gaussians.ridge, pooled=self.gaussians.pooled_covariance())

    @torch.inference_mode()
    def fitted_temperature(self, task: int) -> float:
        """Temperature of `probabilities` from the validation images of this task, the only ones at hand; 1 without any."""
        if not self.config.val_fraction or not self.data.count("val", task):
            return 1.0
        features, labels = self.extract("val", task)
        scores = self.fold_domains(self.scores(features))
        return fit_temperature(scores, labels if self.data.label_period is None else labels % self.data.label_period)

    # Statistics ----------------------------------------------------------------------------------------------

    def collect_statistics(self, task: int, monitor: Monitor) -> None:
        """One Gaussian for each of the task's classes, from one pass over its training images."""
        features, labels = self.extract("train", task)
        classes = range(self.data.classes_before(task), self.data.classes_upto(task))
        thin = self.gaussians.fit(features, labels, classes)
        if thin:
            monitor.log(f"statistics: {len(thin)} of {len(classes)} classes have no more images than the {features.shape[1]} "
                        f"feature dimensions; their covariances are regularised by the ridge {self.gaussians.ridge:g}")

    def features(self, images: Tensor) -> Tensor:
        return super().features(images) if self.config.features == "cls" else self.features_of(self.net.backbone, images)

    def features_of(self, backbone: Backbone, images: Tensor) -> Tensor:
        """What statistics and read-out see of images (N, C, H, W): (N, D), or (N, 2 D) with the mean patch token."""
        return backbone(images) if self.config.features == "cls" else backbone.class_and_mean(images)

    @torch.no_grad()
    def follow_backbone(self, task: int, monitor: Monitor) -> None:
        """Move the statistics of all old classes with the backbone (models/slca/drift.py)."""
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
        operator = sums.operator(RHO[c.drift_anchors] if c.drift_rho is None else c.drift_rho)
        self.gaussians.transport(operator)
        moved = torch.linalg.matrix_norm(operator - torch.eye(len(operator), device=device)) / len(operator) ** 0.5
        monitor.log(f"drift: the statistics of {len(self.gaussians)} old classes follow the backbone, |W - I| / |I| = {moved:.3g}")

    # Stage 1 with distillation -------------------------------------------------------------------------------

    def training_module(self, task: int) -> nn.Module:
        return OwnTaskWithFeatures(self.net, task) if self.distils else super().training_module(task)

    def training_loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """With `kd`: + kd * mean squared distance to the features of the backbone before the task."""
        if not self.distils:
            return super().training_loss(module, images, labels)
        logits, features = module(images)  # (N, C_t), (N, D)
        with torch.no_grad(), self.fabric.autocast():
            before = self.backbone_before(images)
        targets = labels - self.data.classes_before(self.task)
        loss = self.classification_loss(logits, targets) + self.config.kd * F.mse_loss(features, before)
        return loss, logits, targets

    @property
    def distils(self) -> bool:
        return self.config.kd > 0 and self.backbone_before is not None

    # Classifier Alignment ------------------------------------------------------------------------------------

    @property
    def aligns(self) -> bool:
        return self.config.readout == "ca" and self.config.ca_epochs > 0

    def align(self, task: int, monitor: Monitor) -> None:
        """Align the heads in one process and hand them to the others; remember how they were before."""
        self.heads_before = {name: tensor.clone() for name, tensor in self.net.heads.state_dict().items()}
        if self.config.ca_eval:  # every process takes part in this; then the first has what it tests on
            for i in range(task + 1):
                self.extract("test", i)
        if self.fabric.is_global_zero:
            self.train_heads(task, monitor)
        copy_from_first(self.fabric, self.net.heads.parameters())

    def train_heads(self, task: int, monitor: Monitor) -> None:
        """Train all heads on `ca_samples` features per class and epoch (SLCA section 3.3)."""
        c = self.config
        lr = c.lr if c.ca_lr is None else c.ca_lr
        alignment = Alignment(self.net.heads, lr=lr, momentum=c.momentum, weight_decay=c.weight_decay, tau=c.ca_with_logit_norm)
        for epoch in range(c.ca_epochs):
            alignment.set_lr(cosine(lr, epoch, c.ca_epochs))
            losses = [alignment.step(features, labels) for features, labels in self.drawn_batches(task, epoch)]
            alignment.finish()
            accuracy = self.evaluate(task).top1 if c.ca_eval else None  # test features are extracted once, then kept
            monitor.end_alignment_epoch(task, epoch, torch.stack(losses).mean().item(), accuracy)
        self.gaussians.free_buffers()

    def drawn_batches(self, task: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled batches of drawn features (B, D) and their classes (B,), `ca_samples` of every class seen.

        All samples of the epoch are drawn at once, as in the paper, unless they would not fit `ca_memory_gb`: then in
        rounds of fewer samples of every class, each round shuffled for itself.
        """
        device = self.fabric.device
        generator = torch_generator(self.config.torch_seed, "align", task, epoch, device=device)
        for count in self.samples_per_round():
            features, labels = self.draw_features(task, count, generator)
            order = torch.randperm(len(labels), generator=generator, device=device)
            for batch in order.split(self.config.ca_batch_size):
                yield features[batch], labels[batch]

    def samples_per_round(self) -> list[int]:
        """Samples of each class per round, `ca_samples` in all."""
        samples = self.config.ca_samples
        needed = len(self.gaussians) * samples * self.net.backbone.dim * FLOAT_BYTES
        rounds = min(max(math.ceil(needed / (self.config.ca_memory_gb * 2**30)), 1), samples)
        return [samples * (r + 1) // rounds - samples * r // rounds for r in range(rounds)]

    def draw_features(self, task: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`count` features per class around means that shrink with age: m_c = (1 - d + d (t_c + 1)/(T + 1)) mu_c, d = `ca_mean_decay`."""
        decay = self.config.ca_mean_decay
        age = (self.tasks_of_classes(task) + 1) / (task + 1)  # (K,)
        means = self.gaussians.means() * (1 - decay + decay * age)[:, None]
        return self.gaussians.sample(means, count, generator)

    def tasks_of_classes(self, task: int) -> Tensor:
        """Task in which each class seen so far came in, (K,); as the release computes it under `compat: "release"`."""
        seen = self.data.classes_upto(task)
        if self.config.compat == "release":
            return torch.arange(seen, device=self.fabric.device) // self.data.task_sizes[task]
        return torch.as_tensor(self.data.task_of_class[:seen], device=self.fabric.device)

    def recall_heads(self) -> None:
        """Put the heads back to where stage 1 left them: alignment always starts there, unless `ca_start` is "aligned"."""
        if self.heads_before and self.config.ca_start == "local":
            self.net.heads.load_state_dict(self.heads_before)
        self.heads_before = {}

    # State ---------------------------------------------------------------------------------------------------

    def extra_state(self) -> dict[str, Tensor]:
        return {**{f"gaussians.{k}": v for k, v in self.gaussians.state_dict().items()},
                "temperature": torch.tensor(self.temperature, dtype=torch.float64),
                **{f"heads_before.{k}": v for k, v in self.heads_before.items()}}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        self.gaussians.load_state_dict(_part(state, "gaussians."))
        self.gaussian_readout = self.read_gaussians()
        self.temperature = state["temperature"].item()
        self.heads_before = _part(state, "heads_before.")

    def planned_statistics(self, classes: int, images_per_class: int | None) -> int:
        dim = self.net.backbone.dim * (2 if self.config.features == "cls+mean" else 1)
        return self.gaussians.planned_bytes(classes, images_per_class, dim) if images_per_class is not None else 0

    def memory_bytes(self) -> dict[str, int]:
        kept = super().memory_bytes()
        recalled = sum(tensor.nbytes for tensor in self.heads_before.values())  # what the next task starts from
        return {**kept, "statistics": self.gaussians.nbytes(), "parameters": kept["parameters"] + recalled}


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
