"""CoMA and CoFiMA: SLCA whose backbone is averaged with the one before each task (Marouf et al., ECCV 2024, arXiv 2312.08977).

    CoMA      theta <- (1 - a) theta_old + a theta_new
    CoFiMA    theta <- ((1 - a) F_old theta_old + a F_new theta_new) / ((1 - a) F_old + a F_new)

theta_old is the averaged backbone that the task began with, theta_new what stage 1 made of it, F the diagonal of the Fisher
information after each of the two trainings. Statistics and alignment follow on the averaged backbone, and the next task begins there.

Differs from the authors' code: the heads are not averaged. There old heads are a mixture of aligned and unaligned ones, and
the new head is multiplied by its Fisher information, so that alignment begins near 0. F is the mean over images of the squared
gradient of log p(y | x), y drawn from the model over the task's own classes; there the squared gradient of batches' mean loss
over all classes, which is smaller. Where both F are 0 the average is CoMA's; there it is no number.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from convs.states import fisher_average, move_towards
from models.base import FLOAT_BYTES
from models.finetuned.ewc import estimate_fisher
from models.registry import learner
from models.slca.gaussian_learner import part_of_state
from models.slca.slca import SLCA, SLCASettings
from utils.run.monitor import Monitor

LEAST_FISHER = 1e-12  # below it a weight has no say, so that no weight is divided by 0


class CoMASettings(SLCASettings):
    """The average."""

    coma_alpha: float = Field(0.4, ge=0.0, le=1.0, description="share of the new weights; 1 is SLCA (the authors' code: 0.4)")


@learner("coma")
class CoMA(SLCA):
    Settings = CoMASettings
    title = "CoMA"

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.weights_before: dict[str, Tensor] = {}  # of the backbone that the task began with; only while it is learned

    def begin_task(self, task: int) -> None:
        super().begin_task(task)
        if task > 0:
            self.weights_before = {name: p.detach().clone() for name, p in self.averaged_parameters().items()}

    def end_task(self, task: int, monitor: Monitor) -> None:
        with monitor.stage("averaging"):
            self.average(task)
        self.weights_before = {}
        super().end_task(task, monitor)

    def averaged_parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.net.backbone.named_parameters() if p.requires_grad}

    def average(self, task: int) -> None:
        """Average the backbone with the one before `task`."""
        if task > 0:
            self.take_over(move_towards(self.weights_before, self.averaged_parameters(), self.config.coma_alpha))

    @torch.no_grad()
    def take_over(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self.averaged_parameters().items():
            parameter.copy_(weights[name])


class CoFiMASettings(CoMASettings):
    """The Fisher information."""

    cofima_images: int = Field(200, ge=1, description="images per task that the Fisher information is estimated on (ours; the authors' "
        "code takes all, in batches)")
    cofima_fisher_max: float = Field(1e-4, gt=0.0, description="Fisher values are cut here (the authors' code)")


@learner("cofima")
class CoFiMA(CoMA):
    Settings = CoFiMASettings
    title = "CoFiMA"

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.fisher: dict[str, Tensor] = {}  # parameter -> F after the newest training, as the parameter's shape

    def average(self, task: int) -> None:
        c, parameters = self.config, self.averaged_parameters()
        fisher = {name: f.clamp_max(c.cofima_fisher_max) for name, f in estimate_fisher(self, task, parameters, c.cofima_images).items()}
        if task > 0:
            self.take_over(fisher_average(self.weights_before, parameters, self.fisher, fisher, c.coma_alpha, LEAST_FISHER))
        self.fisher = fisher

    # State ---------------------------------------------------------------------------------------------------

    def extra_state(self) -> dict[str, Tensor]:
        return {**super().extra_state(), **{f"fisher.{k}": v for k, v in self.fisher.items()}}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_extra_state(state)
        self.fisher = part_of_state(state, "fisher.")

    def planned_statistics(self, classes: int, images_per_class: int | None) -> int:
        trained = sum(p.numel() for p in self.averaged_parameters().values())
        return super().planned_statistics(classes, images_per_class) + FLOAT_BYTES * trained

    def memory_bytes(self) -> dict[str, int]:
        kept = super().memory_bytes()
        return {**kept, "statistics": kept["statistics"] + sum(t.nbytes for t in self.fisher.values())}
