"""E2-LoRA: full-rank pairs whose idle ranks are released to the next task (authors' code: kiddo127/E2-LoRA).

A pair per task at qkv and fc1 of every block; the columns of all B together are an orthonormal basis of the layer's output.

    task 0        A and B of full rank train (B from 0)
    after a task  the newest pair is rotated: U are the left singular vectors of the centred B A x over the task's tokens, A <- U'B A,
                  B <- U, so that its ranks are ordered by how much of the output they carry (`rotate_pair`); no output changes
    before task t each pair keeps its leading ranks that hold tau of its energy, tau the largest for which they sum to at most
                  t / (t + 1) of the width (`ranks_to_keep`); the columns of B beyond are the new pair's B, fixed; its A, from 0, trains
    loss          cross-entropy of the new logits + w T^2 KL of the old ones from the same network without the newest pair
    alignment     SLCA's, without logit normalisation; aligned heads are where the next one begins

Differs from the authors' code: U is of all of the task's tokens under the test transform, there of one augmented batch; the task of
a class is a table, there c // (size of the last task).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from convs.lora_pairs import LoRAPair, PairedLinear, Pairs, start_A
from models.all_heads import DistillationSettings
from models.lora.task_pairs import TaskPairs
from models.registry import learner
from models.slca.gaussian_learner import part_of_state
from models.slca.slca import SLCA, SLCASettings
from utils.formulas.subspaces import ranks_to_keep, rotate_pair
from utils.machine.distributed import copy_from_first
from utils.rng import torch_generator
from utils.run.monitor import Monitor


class E2LoRASettings(DistillationSettings, SLCASettings):
    """The distillation."""

    e2_distill: float = Field(0.25, ge=0.0, description="w, weight of the distillation of old logits (authors' code: 0.25)")


@learner("e2_lora")
class E2LoRA(TaskPairs, SLCA):
    Settings = E2LoRASettings
    title = "E2-LoRA"
    targets = ("qkv", "fc1")
    grows: ClassVar = True
    defaults: ClassVar = {"bcb_lrscale": 0.05, "ca_epochs": 3, "ca_ridge": 2e-4, "ca_start": "aligned"}

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.energies: dict[str, Tensor] = {}  # "<layer's path>.<target>.<task>" -> singular values of the ranks kept, descending

    # Pairs ---------------------------------------------------------------------------------------------------

    def add_pair(self, pairs: Pairs, task: int) -> None:
        generator = torch_generator(self.config.torch_seed, "lora", task)
        for path, layer in pairs.layers.items():
            for target in layer.pairs:
                if task == 0:
                    pair = layer.make(target, "0", width_of(layer, target), None)
                    if not layer.weight.is_meta:
                        pair.lora_A.data.copy_(start_A("kaiming", layer.weight, len(pair.lora_A), generator))
                else:
                    released = self.release(path, layer, target, task)
                    layer.make(target, str(task), released.shape[1], None).lora_B.data.copy_(released)

    def release(self, path: str, layer: PairedLinear, target: str, task: int) -> Tensor:
        """Cut the old pairs of one layer down to the ranks that they keep; the columns (out, r) that become free."""
        names = [f"{path}.{target}.{t}" for t in range(task)]
        kept = ranks_to_keep([self.energies[name] for name in names], width_of(layer, target), task)
        released = []
        for t, (name, rank) in enumerate(zip(names, kept, strict=True)):
            pair = layer.pairs[target][str(t)]
            released.append(pair.lora_B[:, rank:].detach())
            pair.set(pair.lora_A[:rank].detach(), pair.lora_B[:, :rank].detach())
            self.energies[name] = self.energies[name][:rank]
        return torch.cat(released, dim=1)

    def trains(self, name: str) -> bool:
        """A and B of the first pair, A alone of the others."""
        return super().trains(name) and (self.task <= 0 or self.is_factor(name, "lora_A"))

    @torch.no_grad()
    def rotate(self, task: int) -> None:
        """Order the ranks of the pair of `task` by how much of the layer's output they carry."""
        moments = self.task_moments(task)
        for path, layer in self.pairs.layers.items():
            covariance = moments[path].covariance()
            for target in layer.pairs:
                pair: LoRAPair = layer.pairs[target][str(task)]
                B, A, energies = rotate_pair(pair.lora_B.double(), pair.lora_A.double(), covariance)
                pair.set(A, B)
                self.energies[f"{path}.{target}.{task}"] = energies.float()
                copy_from_first(self.fabric, [pair.lora_A, pair.lora_B, self.energies[f"{path}.{target}.{task}"]])

    # Training ------------------------------------------------------------------------------------------------

    def training_module(self, task: int) -> nn.Module:
        """Images -> logits of all classes seen so far (N, K)."""
        return self.net

    def training_loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first, c = self.stream.classes_before(self.task), self.config
        logits, targets = module(images), labels - first
        loss = self.classification_loss(logits[:, first:], targets)
        if first and c.e2_distill:
            loss = loss + c.e2_distill * old_logits_loss(logits[:, :first], self.teacher_logits(images), c.distill_temperature)
        return loss, logits[:, first:], targets

    @torch.no_grad()
    def teacher_logits(self, images: Tensor) -> Tensor:
        """Old logits (N, K_old) of the network without the newest pair."""
        with self.fabric.autocast(), self.pairs.using(range(self.task)):
            return self.net(images)[:, : self.stream.classes_before(self.task)].float()

    def end_task(self, task: int, monitor: Monitor) -> None:
        with monitor.stage("rotation"):
            self.rotate(task)
        super().end_task(task, monitor)

    # State ---------------------------------------------------------------------------------------------------

    def extra_state(self) -> dict[str, Tensor]:
        return {**super().extra_state(), **{f"energies.{name}": values for name, values in self.energies.items()}}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_extra_state(state)
        self.energies = part_of_state(state, "energies.")


def width_of(layer: PairedLinear, target: str) -> int:
    rows = layer.rows(target)
    return rows.stop - rows.start


def old_logits_loss(logits: Tensor, old: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(old / T) | softmax(new / T)), both (N, K_old). Returns the mean over N."""
    log_probabilities, wanted = (logits / temperature).log_softmax(dim=1), (old / temperature).softmax(dim=1)
    return temperature**2 * F.kl_div(log_probabilities, wanted, reduction="batchmean")
