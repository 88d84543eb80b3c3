"""Two states of one backbone: the *trained* one, which each task goes on from, and the *deployed* one, which features are read with.

    s_t   what stage 1 leaves; the next task trains on from it
    M_t   M_{t-1} moved a share a of the way to s_t: theta = theta_M + a (theta_s - theta_M), of LoRA's A only the leading
          directions of the step (convs/states.py). M_0 = s_0; with "auto" M_0 is chosen as any other, from the pre-trained state on

So training is fast and undisturbed, and what statistics and read-out see moves slowly: a moving average of the trained
states. How far it may move can be decided after each task (`move: "auto"`), without an old image and without a test image:

    held-out images of the new task       are they classified better by the moved state?
    features drawn from the old Gaussians are they still classified right, once carried over by the drift operator, with the
                                          error that the operator makes on the held-out images added as noise?

Both are answered among all classes by the same discriminant, for every candidate share, 0 (stay) among them; the best one is
taken where it beats staying by more than the standard error of the comparison. Where staying is within that error of 100 %
already, the others are not looked at. The chain of trained states and the merged one are described by the authors of LoRA
chains for continual learning; the decision is this project's own (docs/beyond.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from convs.states import moving_lora
from utils.config import Strict

CANDIDATES = (0.0, 0.1, 0.3, 1.0)  # shares that "auto" tries; the first one stays
DRAWN_PER_CLASS = 32  # features per old class that "auto" judges old classes by


class DeployedSettings(Strict):
    """Which state of the backbone is deployed."""

    move: Literal["trained", "average", "auto"] = Field("trained",
        description="deployed backbone: trained, as stage 1 left it (the papers); average, moved move_share of the way; auto, as far "
                    "as held-out images and drawn features allow (needs val_fraction)")
    move_share: Annotated[float, Field(ge=0.0, le=1.0)] = Field(0.3,
        description="average: share of the way from the deployed to the trained state, 0 to 1")
    move_energy: Annotated[float, Field(gt=0.0, le=1.0)] = Field(0.9,
        description="average, auto: share of the squared singular values of a step of LoRA's A that is kept")


class TrainedState:
    """The trained state's tensors while the network holds the deployed one; empty while they are the same."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}  # names in the backbone's model -> (parameter's shape)

    def load_into(self, model: nn.Module) -> None:
        """Put the trained state into the model, which then goes on training."""
        put(model, self.tensors)
        self.tensors = {}

    def take_from(self, model: nn.Module) -> dict[str, Tensor]:
        """Remember what training changed in `model` as it is; returns it."""
        self.tensors = {name: tensor.clone() for name, tensor in trained_tensors(model).items()}
        return self.tensors

    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What training may change, by name: parameters that train, and running statistics (BatchNorm's)."""
    trained = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    return trained | {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}


@torch.no_grad()
def put(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy `tensors` into the model's parameters and buffers of these names."""
    own = own_tensors(model)
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers of a model by name, themselves and no copies."""
    return {**{name: parameter.detach() for name, parameter in model.named_parameters()}, **dict(model.named_buffers())}


def moved(deployed: Mapping[str, Tensor], trained: Mapping[str, Tensor], share: float, energy: float) -> dict[str, Tensor]:
    """The state `share` of the way from `deployed` to `trained`."""
    if share == 0:
        return dict(deployed)
    return dict(trained) if share == 1 else moving_lora(deployed, trained, share, energy)
