"""SLCA: Slow Learner with Classifier Alignment (Zhang et al., ICCV 2023, arXiv 2303.05118).

    section 3.2, Slow Learner           the backbone's learning rate is a hundredth of the head's: `defaults` here and
                                        BaseLearner.parameter_groups; cross-entropy over the new task's own logits: OwnTask
    section 3.3, Classifier Alignment   N(mu_c, Sigma_c) per class: GaussianLearner.collect_statistics
                                        features drawn from them, means shrunk with age: `draw_features`
                                        all heads trained on them: `train_heads`; logit normalisation: models/slca/alignment.py

Differs from the authors' release: the task of a class is a table instead of c // (size of the last task), which
is wrong for tasks of different size (`compat: "release"` brings it back); covariances are kept as exact factors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from models.registry import learner
from models.slca.alignment import Alignment, AlignmentSettings, Pairs, refuse_bad_loss, samples_per_round
from models.slca.gaussian_learner import GaussianLearner, GaussianSettings, part_of_state
from utils.formulas.schedules import cosine
from utils.machine.distributed import copy_from_first
from utils.rng import torch_generator
from utils.run.monitor import Monitor


class SLCASettings(AlignmentSettings, GaussianSettings):
    """Gaussians and their alignment."""


@learner("slca")
class SLCA(GaussianLearner):
    Settings = SLCASettings
    title = "SLCA"
    trains_on_features = True
    defaults: ClassVar = {"bcb_lrscale": 0.01}  # section 3.2: the Slow Learner

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.heads_before: dict[str, Tensor] = {}  # heads as stage 1 left them, between alignment and the next task

    def begin_task(self, task: int) -> None:
        self.recall_heads()
        super().begin_task(task)

    def end_task(self, task: int, monitor: Monitor) -> None:
        self.update_statistics(task, monitor)  # section 3.3: N(mu_c, Sigma_c) of the new classes
        if self.aligns and task > 0:
            with monitor.stage("alignment"):
                self.align(task, monitor)

    # Section 3.3, Classifier Alignment -----------------------------------------------------------------------

    @property
    def aligns(self) -> bool:
        return self.readout.uses_heads and self.config.ca_epochs > 0

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
        """Train all heads on `ca_samples` features per class and epoch, the backbone untouched (Eq. 5-6)."""
        c, alignment = self.config, self.make_alignment()
        for epoch in range(c.ca_epochs):
            alignment.set_lr(self.alignment_rate(epoch))
            losses = [alignment.step(features, labels) for features, labels in self.drawn_batches(task, epoch)]
            alignment.finish()
            loss = torch.stack(losses).mean().item()
            refuse_bad_loss(loss, task, epoch)
            accuracy = self.evaluate(task).top1 if c.ca_eval else None  # test features are extracted once, then kept
            monitor.end_alignment_epoch(task, epoch, loss, accuracy)
        self.gaussians.free_buffers()

    def make_alignment(self) -> Alignment:
        """What steps on all heads: the loss and its optimiser."""
        c = self.config
        return Alignment(self.net.heads, lr=self.alignment_rate(0), momentum=c.momentum, weight_decay=c.weight_decay,
                         tau=c.ca_with_logit_norm, pairs=Pairs(c.ca_pairs, self.gaussians.means()) if c.ca_pairs > 0 else None)

    def alignment_rate(self, epoch: int) -> float:
        c = self.config
        return cosine(c.lr if c.ca_lr is None else c.ca_lr, epoch, c.ca_epochs)

    def alignment_batch(self) -> int:
        """Features per step."""
        return self.config.ca_batch_size

    def drawn_batches(self, task: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled batches of drawn features (B, D) and their classes (B,), `ca_samples` of every class seen.

        All samples of the epoch are drawn at once, as in the paper, unless they would not fit `ca_memory_gb`: then in
        rounds of fewer samples of every class, each round shuffled for itself.
        """
        c, device = self.config, self.fabric.device
        generator = torch_generator(c.torch_seed, "align", task, epoch, device=device)
        for count in samples_per_round(c, len(self.gaussians), self.net.backbone.dim):
            features, labels = self.draw_features(task, count, generator)
            order = torch.randperm(len(labels), generator=generator, device=device)
            for batch in order.split(self.alignment_batch()):
                yield features[batch], labels[batch]

    def draw_features(self, task: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`count` features per class around means that shrink with age: m_c = (1 - d + d (t_c + 1)/(T + 1)) mu_c, d = `ca_mean_decay`."""
        decay = self.config.ca_mean_decay
        age = (self.tasks_of_classes(task) + 1) / (task + 1)  # (K,)
        means = self.gaussians.means() * (1 - decay + decay * age)[:, None]
        return self.gaussians.sample(means, count, generator)

    def tasks_of_classes(self, task: int) -> Tensor:
        """Task in which each class seen so far came in, (K,); as the release computes it under `compat: "release"`."""
        seen = self.stream.classes_upto(task)
        if self.config.compat == "release":
            return torch.arange(seen, device=self.fabric.device) // self.stream.task_sizes[task]
        return torch.as_tensor(self.stream.task_of_class[:seen], device=self.fabric.device)

    def recall_heads(self) -> None:
        """Put the heads back to where stage 1 left them: alignment always starts there, unless `ca_start` is "aligned"."""
        if self.heads_before and self.config.ca_start == "local":
            self.net.heads.load_state_dict(self.heads_before)
        self.heads_before = {}

    def refine(self, features: Tensor, labels: Tensor, monitor: Monitor) -> None:
        """With aligned heads these are aligned anew, from where alignment began, on the refined Gaussians."""
        super().refine(features, labels, monitor)
        if self.aligns and self.task > 0:
            self.recall_heads()
            self.align(self.task, monitor)

    def forget_statistics(self, labels: Collection[int]) -> None:
        super().forget_statistics(labels)
        for name, tensor in self.heads_before.items():  # "<task>.weight", "<task>.bias"; a cosine head's scale has no rows
            if tensor.ndim:
                kept = [row for row, label in enumerate(self.stream.classes_of(int(name.partition(".")[0]))) if label not in labels]
                self.heads_before[name] = tensor[kept]

    def classifier_before_alignment(self) -> Callable[[Tensor], Tensor] | None:
        if not self.heads_before:
            return None
        heads = copy.deepcopy(self.net.heads)
        heads.load_state_dict(self.heads_before)
        return lambda features: torch.cat([head(features) for head in heads], dim=1)

    # State ---------------------------------------------------------------------------------------------------

    def extra_state(self) -> dict[str, Tensor]:
        return {**super().extra_state(), **{f"heads_before.{k}": v for k, v in self.heads_before.items()}}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_extra_state(state)
        self.heads_before = part_of_state(state, "heads_before.")

    def files(self, task: int) -> dict[str, Mapping[str, Tensor]]:
        """With `save_before_ca`, the network as it was before the alignment."""
        if not (self.config.save_before_ca and self.heads_before):
            return {}
        heads = {f"heads.{name}": tensor for name, tensor in self.heads_before.items()}
        return {f"weights_before_ca_{task}": {**self.network_state(), **heads, "_extra_state": torch.ones(len(self.net.heads))}}

    def memory_bytes(self) -> dict[str, int]:
        kept = super().memory_bytes()
        recalled = sum(tensor.nbytes for tensor in self.heads_before.values())  # what the next task starts from
        return {**kept, "parameters": kept["parameters"] + recalled}
