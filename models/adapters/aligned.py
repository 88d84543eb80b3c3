"""What MOS and TUNA share: each adapter goes on from the one before, and all heads are aligned on the classes' Gaussians.

A parent, not a method. N(mu_c, S_c + ridge I) is of the features under the adapter of the class's own task. After every
task but the first all heads train on features drawn from all classes, by cross-entropy; the next task goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from models.adapters.per_task import AdapterPerTask, AdapterSettings, PassName
from models.slca.alignment import Alignment, refuse_bad_loss, samples_per_round
from models.slca.gaussian_learner import part_of_state
from models.slca.gaussians import ClassGaussians
from utils.formulas.schedules import cosine
from utils.machine.distributed import copy_from_first
from utils.rng import torch_generator
from utils.run.monitor import Monitor


class AlignedSettings(AdapterSettings):
    """Gaussians and alignment."""

    adapter_width: int = Field(16, ge=1, le=100_000, description="width of an adapter's bottleneck (MOS, TUNA: 16)")
    ca_epochs: int = Field(30, ge=0, le=100_000, description="epochs of alignment; 0 switches it off")
    ca_lr: float = Field(0.005, gt=0.0, le=100.0, description="learning rate of alignment")
    ca_samples: int = Field(240, ge=1, description="features drawn per class and epoch (MOS: 5 x batch_size)")
    ca_batch_size: int = Field(240, ge=1, description="features per step")
    ca_memory_gb: float = Field(4.0, gt=0.0, le=100_000.0,
        description="GiB that one epoch's drawn features may take; beyond it they are drawn in rounds of fewer per class")
    ca_ridge: float = Field(1e-4, gt=0.0, description="added to the diagonal of each class's covariance")
    ca_cov: Literal["full", "diag"] = Field("full",
        description="covariance of a class: full, or diag, one variance per dimension (MOS on ImageNet-A)")


class AlignedAdapters(AdapterPerTask):
    """Adapters that continue, Gaussians of all classes seen, heads aligned on them."""

    Settings = AlignedSettings

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.gaussians = ClassGaussians(self.config.ca_ridge, cov=self.config.ca_cov)  # one per class seen

    def begin_task(self, task: int) -> None:
        super().begin_task(task)
        if task > 0:
            self.adapters.load(task, self.adapters.state(task - 1))

    def end_task(self, task: int, monitor: Monitor) -> None:
        with monitor.stage("statistics"):
            features, labels = self.training_features(task, self.statistics_passes(task))
            self.add_statistics(features, labels, self.stream.classes_of(task))
        if task > 0 and self.config.ca_epochs > 0:
            with monitor.stage("alignment"):
                self.align(task, monitor)

    # Statistics ----------------------------------------------------------------------------------------------

    def statistics_passes(self, task: int) -> list[PassName]:
        """The passes that statistics are taken from; the new task's adapter first."""
        return [task]

    def add_statistics(self, features: list[Tensor], labels: Tensor, classes: range) -> None:
        """Take in the features (N, D) of each of `statistics_passes`, with labels (N,), of the task's `classes`."""
        self.gaussians.fit(features[0], labels, classes)

    # Alignment -----------------------------------------------------------------------------------------------

    def align(self, task: int, monitor: Monitor) -> None:
        """Align the heads in one process and hand them to the others."""
        if self.fabric.is_global_zero:
            self.train_heads(task, monitor)
        copy_from_first(self.fabric, self.net.heads.parameters())

    def train_heads(self, task: int, monitor: Monitor) -> None:
        """Train all heads on `ca_samples` features per class and epoch."""
        c = self.config
        alignment = Alignment(self.net.heads, lr=c.ca_lr, momentum=c.momentum, weight_decay=c.weight_decay, tau=None)
        for epoch in range(c.ca_epochs):
            alignment.set_lr(cosine(c.ca_lr, epoch, c.ca_epochs))
            loss = torch.stack([alignment.step(features, labels) for features, labels in self.drawn_batches(task, epoch)]).mean().item()
            refuse_bad_loss(loss, task, epoch)
            monitor.end_alignment_epoch(task, epoch, loss, None)
        alignment.finish()
        self.gaussians.free_buffers()

    def drawn_batches(self, task: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled batches of drawn features (B, D) and their classes (B,)."""
        c, device = self.config, self.fabric.device
        generator = torch_generator(c.torch_seed, "align", task, epoch, device=device)
        means = self.gaussians.means()
        for count in samples_per_round(c, len(means), means.shape[1]):
            features, labels = self.gaussians.sample(means, count, generator)
            order = torch.randperm(len(labels), generator=generator, device=device)
            for batch in order.split(c.ca_batch_size):
                yield features[batch], labels[batch]

    # Prediction ----------------------------------------------------------------------------------------------

    def logits(self, features: Tensor) -> Tensor:
        """Logits of all heads for each pass: (N, P, D) -> (N, P, K)."""
        return self.net.classify(features.flatten(0, 1)).unflatten(0, (-1, features.shape[1]))

    def to_probabilities(self, scores: Tensor) -> Tensor:
        """Scores are sums of probabilities; here they sum to 1."""
        folded = self.fold_domains(scores)
        return folded / folded.sum(dim=1, keepdim=True)

    def judge_held_out(self, task: int, monitor: Monitor) -> None:
        """Scores are probabilities."""

    # State ---------------------------------------------------------------------------------------------------

    def extra_state(self) -> dict[str, Tensor]:
        return {f"gaussians.{name}": tensor for name, tensor in self.gaussians.state_dict().items()}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        self.gaussians.load_state_dict(part_of_state(state, "gaussians."))

    def planned_statistics(self, classes: int, images_per_class: int | None) -> int:
        return 0 if images_per_class is None else self.gaussians.planned_bytes(classes, images_per_class, self.net.backbone.dim)

    def memory_bytes(self) -> dict[str, int]:
        return {**super().memory_bytes(), "statistics": self.gaussians.nbytes()}
