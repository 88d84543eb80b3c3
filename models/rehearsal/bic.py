"""BiC: large scale incremental learning with bias correction (Wu et al., CVPR 2019, arXiv 1905.13260).

Stage 1 trains on new images and memory with lambda L_d + (1 - lambda) L_c, lambda = n / (n + m) for n old and m new classes
(its Eq. 1). Stage 2 finds two numbers on a few images of every class that stage 1 never saw: the new classes' logits
become alpha o_k + beta (its Eq. 4). The next task distils from the corrected network.

The validation images of a class are held out from the moment it is learned and never trained on. They are part of the
class's share of the memory and shrink with it. As in the authors' code (wuyuebupt/LargeScaleIncrementalLearning at 739b628)
the loss of stage 2 has a penalty of 0.1 beta^2 / 2 and none on alpha.

Differs from the paper: a pre-trained ViT; alpha and beta minimise the validation loss to convergence (two parameters, a
convex problem, features computed once) instead of by SGD; where the validation images are all classified right no finite
alpha is best, and the search ends once its gradient is below 1e-9. Of a class are held out as many images as some task will
use; the authors hold out as many of every class as of the first ones.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

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

BETA_PENALTY = 0.1  # times beta^2 / 2, beside the mean loss of an image (the authors' code)
NO_CORRECTION = (1.0, 0.0)


class BiCSettings(DistillationSettings, RehearsalSettings):
    """Distillation and bias correction."""

    bic_val_fraction: float = Field(0.1, gt=0.0, le=0.5,
        description="BiC: share of the stored images that is never trained on but corrects the bias (Wu et al. 2019)")


@learner("bic")
class BiC(OldNetwork, Rehearsal):
    Settings = BiCSettings
    title = "BiC"
    least_per_class = 2  # one to train on and one to validate on

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.correction = NO_CORRECTION  # alpha and beta of the newest task
        self.old_correction = NO_CORRECTION  # those of the network that is distilled
        self.validation = np.empty(0, dtype=np.int64)  # (V,) images never trained on: by class, each class in the order drawn

    def begin_task(self, task: int) -> None:
        super().begin_task(task)
        self.old_correction, self.correction = self.correction, NO_CORRECTION
        self.validation = np.concatenate([self.kept_validation(task), self.drawn_validation(task)])

    # Held-out images -----------------------------------------------------------------------------------------

    def validation_per_class(self, task: int) -> int:
        """How many images of each class the correction of `task` uses; the first task has none, and holds out the next one's."""
        return max(1, int(self.config.bic_val_fraction * self.images_per_class(max(task - 1, 0))))

    def kept_validation(self, task: int) -> np.ndarray:
        """Those of the classes before `task`, as many as its correction uses."""
        labels, count = self.data.labels_of("train", self.validation), self.validation_per_class(task)
        kept = [self.validation[labels == c][:count] for c in range(self.stream.classes_before(task))]
        return np.concatenate([self.validation[:0], *kept])

    def drawn_validation(self, task: int) -> np.ndarray:
        """As many of each new class; one image at least is left to train on."""
        indices = self.data.task_indices("train", task)
        labels, generator = self.data.labels_of("train", indices), numpy_generator(self.config.torch_seed, "bic", task)
        classes = [indices[labels == c] for c in self.stream.classes_of(task)]
        drawn = [generator.permutation(own)[:min(self.validation_per_class(task), max(len(own) - 1, 0))] for own in classes]
        return np.concatenate(drawn)

    def exemplars_per_class(self, task: int) -> int:
        return self.images_per_class(task) - self.validation_per_class(task + 1)

    def storable(self, task: int) -> np.ndarray:
        return np.setdiff1d(super().storable(task), self.validation)

    def training_indices(self, task: int) -> np.ndarray:
        return np.setdiff1d(super().training_indices(task), self.validation)

    # Training ------------------------------------------------------------------------------------------------

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
        if task > 0 and len(self.validation):
            with monitor.stage("statistics"):
                features, labels = self.extract_images(self.validation)
                logits = self.net.classify(features).detach()
                self.correction = fit_correction(logits, labels, self.stream.classes_before(task))
                monitor.log(f"bias correction on {len(labels)} images: alpha {self.correction[0]:.3f}, beta {self.correction[1]:.3f}")
        super().end_task(task, monitor)
        self.validation = self.kept_validation(task + 1)

    def scores(self, features: Tensor) -> Tensor:
        return correct(super().scores(features), self.stream.classes_before(self.task), *self.correction)

    def forget_statistics(self, labels: Collection[int]) -> None:
        super().forget_statistics(labels)
        self.validation, _ = self.without(self.validation, labels)

    def extra_state(self) -> dict[str, Tensor]:
        return {**super().extra_state(), "correction": torch.tensor(self.correction, dtype=torch.float64),
                "validation": torch.from_numpy(self.validation)}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_extra_state(state)
        self.correction = tuple(state["correction"].tolist())
        self.validation = state["validation"].cpu().numpy()

    def memory_bytes(self) -> dict[str, int]:
        return {**super().memory_bytes(), "images": self.data.images_bytes(np.concatenate([self.memory, self.validation]))}


def correct(logits: Tensor, first_new: int, alpha: float | Tensor, beta: float | Tensor) -> Tensor:
    """q_k = o_k for old classes, alpha o_k + beta for classes from `first_new` on (BiC Eq. 4); logits (N, K)."""
    return torch.cat([logits[:, :first_new], alpha * logits[:, first_new:] + beta], dim=1)


def fit_correction(logits: Tensor, labels: Tensor, first_new: int) -> tuple[float, float]:
    """The alpha and beta with the least mean cross-entropy + 0.1 beta^2 / 2 on validation logits (N, K), labels (N,) (BiC Eq. 5)."""
    logits, labels = logits.double().cpu(), labels.cpu()
    values = torch.tensor(NO_CORRECTION, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([values], max_iter=200, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(correct(logits, first_new, *values), labels) + BETA_PENALTY / 2 * values[1].square()
        loss.backward()
        return loss

    solver.step(closure)
    alpha, beta = values.tolist()
    return alpha, beta
