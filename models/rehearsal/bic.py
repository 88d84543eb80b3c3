"""BiC: large scale incremental learning with bias correction (Wu et al., CVPR 2019, arXiv 1905.13260).

Stage 1 trains on new images and memory with lambda L_d + (1 - lambda) L_c, lambda = n / (n + m) for n old and m new classes
(its Eq. 1). Stage 2 finds two numbers on a few images of every class that stage 1 never saw: the new classes' logits
become alpha o_k + beta (its Eq. 4). The next task distils from the corrected network.

Differs from the paper: a pre-trained ViT; alpha and beta minimise the validation loss to convergence (two parameters, a
convex problem, features computed once) instead of by SGD; a weak pull to (1, 0) keeps them finite when the few
validation images are all classified right.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.all_heads import DistillationSettings, OldNetwork
from models.registry import learner
from models.rehearsal.memory import Rehearsal, RehearsalSettings
from utils.formulas.losses import distillation
from utils.rng import numpy_generator
from utils.run.monitor import Monitor

PULL = 1e-3  # of alpha to 1 and beta to 0, relative to the mean loss of one image
NO_CORRECTION = (1.0, 0.0)


class BiCSettings(DistillationSettings, RehearsalSettings):
    """Distillation and bias correction."""

    bic_val_fraction: float = Field(0.1, gt=0.0, le=0.5,
        description="BiC: share of the stored images kept for bias correction (Wu et al. 2019)")


@learner("bic")
class BiC(OldNetwork, Rehearsal):
    Settings = BiCSettings
    title = "BiC"
    least_per_class = 2  # one to train on and one to validate on

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.correction = NO_CORRECTION  # alpha and beta of the newest task
        self.old_correction = NO_CORRECTION  # those of the network that is distilled
        self.validation = np.empty(0, dtype=np.int64)  # (V,) images kept out of stage 1

    def begin_task(self, task: int) -> None:
        super().begin_task(task)
        self.old_correction, self.correction = self.correction, NO_CORRECTION
        self.validation = self.choose_validation(task) if task > 0 else self.validation[:0]

    def choose_validation(self, task: int) -> np.ndarray:
        """As many images of each new class as of each old one: `bic_val_fraction` of a class's share of the memory."""
        count = max(1, int(self.config.bic_val_fraction * self.images_per_class(task - 1)))
        pool = super().training_indices(task)
        labels = self.data.labels_of("train", pool)
        generator = numpy_generator(self.config.torch_seed, "bic", task)
        return np.sort(np.concatenate([generator.permutation(pool[labels == c])[:count] for c in range(self.stream.classes_upto(task))]))

    def training_indices(self, task: int) -> np.ndarray:
        return np.setdiff1d(super().training_indices(task), self.validation)

    def training_loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        loss, logits, labels = super().training_loss(module, images, labels)
        if self.old_net is not None:
            old = self.old_logits(images)  # (N, n)
            share = old.shape[1] / logits.shape[1]
            loss = share * distillation(logits[:, : old.shape[1]], old, self.config.distill_temperature) + (1 - share) * loss
        return loss, logits, labels

    def old_logits(self, images: Tensor) -> Tensor:
        return correct(super().old_logits(images), self.stream.classes_before(self.task - 1), *self.old_correction)

    def end_task(self, task: int, monitor: Monitor) -> None:
        if task > 0:
            with monitor.stage("statistics"):
                features, labels = self.extract_images(self.validation)
                logits = self.net.classify(features).detach()
                self.correction = fit_correction(logits, labels, self.stream.classes_before(task))
                monitor.log(f"bias correction on {len(labels)} images: alpha {self.correction[0]:.3f}, beta {self.correction[1]:.3f}")
        super().end_task(task, monitor)

    def scores(self, features: Tensor) -> Tensor:
        return correct(super().scores(features), self.stream.classes_before(self.task), *self.correction)

    def extra_state(self) -> dict[str, Tensor]:
        return {**super().extra_state(), "correction": torch.tensor(self.correction, dtype=torch.float64)}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_extra_state(state)
        self.correction = tuple(state["correction"].tolist())


def correct(logits: Tensor, first_new: int, alpha: float | Tensor, beta: float | Tensor) -> Tensor:
    """q_k = o_k for old classes, alpha o_k + beta for classes from `first_new` on (BiC Eq. 4); logits (N, K)."""
    return torch.cat([logits[:, :first_new], alpha * logits[:, first_new:] + beta], dim=1)


def fit_correction(logits: Tensor, labels: Tensor, first_new: int) -> tuple[float, float]:
    """The alpha and beta with the least mean cross-entropy on validation logits (N, K), labels (N,) (BiC Eq. 5)."""
    logits, labels = logits.double().cpu(), labels.cpu()
    start = torch.tensor(NO_CORRECTION, dtype=torch.float64)
    values = start.clone().requires_grad_()
    solver = torch.optim.LBFGS([values], max_iter=200, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(correct(logits, first_new, *values), labels) + PULL / 2 * (values - start).square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    alpha, beta = values.tolist()
    return alpha, beta
