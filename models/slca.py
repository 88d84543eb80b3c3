"""SLCA: Slow Learner with Classifier Alignment (Zhang et al., ICCV 2023, arXiv 2303.05118).

Stage 1 (SL) is `BaseLearner` with a hundred times smaller learning rate for the backbone. Added here: a Gaussian
per class from the features after stage 1, and stage 2 (CA), which trains all heads on features drawn from them.

Differs from the authors' release: the task of a class is a table instead of c // (size of the last task), which
is wrong for tasks of different size (`compat: "release"` brings it back); covariances are kept as exact factors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from models.alignment import Alignment
from models.base import FLOAT_BYTES, BaseLearner
from utils.distributed import copy_from_first
from utils.gaussians import ClassGaussians
from utils.monitor import Monitor
from utils.rng import torch_generator
from utils.schedules import cosine


class SLCA(BaseLearner):
    title = "SLCA"
    defaults = {"bcb_lrscale": 0.01}

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        c = self.config
        # one per class seen, never re-estimated
        self.gaussians = ClassGaussians(c.ca_ridge, cov=c.ca_cov, rank=c.ca_rank, dtype=getattr(torch, c.stats_dtype))
        self.heads_before: dict[str, Tensor] = {}  # heads as stage 1 left them, between alignment and the next task

    def begin_task(self, task: int) -> None:
        self.recall_heads()
        super().begin_task(task)

    def end_task(self, task: int, monitor: Monitor) -> None:
        with monitor.stage("statistics"):
            self.collect_statistics(task, monitor)
        if task > 0 and self.config.ca_epochs > 0:
            monitor.before_alignment(self, task)
            with monitor.stage("alignment"):
                self.align(task, monitor)

    # Statistics ----------------------------------------------------------------------------------------------

    def collect_statistics(self, task: int, monitor: Monitor) -> None:
        """One Gaussian for each of the task's classes, from one pass over its training images."""
        features, labels = self.extract("train", task)
        classes = range(self.data.classes_before(task), self.data.classes_upto(task))
        thin = self.gaussians.fit(features, labels, classes)
        if thin:
            monitor.log(f"statistics: {len(thin)} of {len(classes)} classes have no more images than the {features.shape[1]} "
                        f"feature dimensions; their covariances are regularised by the ridge {self.gaussians.ridge:g}")

    # Classifier Alignment ------------------------------------------------------------------------------------

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
        """Put the heads back to where stage 1 left them: alignment always starts there."""
        if self.heads_before:
            self.net.heads.load_state_dict(self.heads_before)
            self.heads_before = {}

    # State ---------------------------------------------------------------------------------------------------

    def extra_state(self) -> dict[str, Tensor]:
        return {**{f"gaussians.{k}": v for k, v in self.gaussians.state_dict().items()},
                **{f"heads_before.{k}": v for k, v in self.heads_before.items()}}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        self.gaussians.load_state_dict(_part(state, "gaussians."))
        self.heads_before = _part(state, "heads_before.")

    def planned_statistics(self, classes: int, images_per_class: int | None) -> int:
        """Means and exact factors, (min(n - 1, D) + 1) x D numbers per class of n images."""
        dim = self.net.backbone.dim
        return classes * (min(images_per_class - 1, dim) + 1) * dim * FLOAT_BYTES if images_per_class is not None else 0

    def memory_bytes(self) -> dict[str, int]:
        return {**super().memory_bytes(), "statistics": self.gaussians.nbytes()}


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
