"""APER ("ADAM"): class means of pre-trained and adapted features, side by side (Zhou et al., IJCV 2024, arXiv 2303.07338).

    task 0      an adapter (SSF, prompts, the whole backbone: `first_session`) and a cosine head train; then all is frozen
    features    z = [f_pre-trained ; f_adapted], (N, 2 D), two passes per image
    scores      cosine of z with the class means of z

The class means alone are `ncm` ("SimpleCIL" in the paper).

Differs from the authors' code: scores are plain cosines, without the scale that changes no decision.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

from pydantic import Field
from torch import Tensor

from convs.parts import features_of_passes, switched_off
from convs.states import under_state
from models.first_session import FirstSessionSettings
from models.frozen.ncm import NCM
from models.registry import learner

PRETRAINED = "pretrained."  # prefix in a checkpoint


class APERSettings(FirstSessionSettings):
    """The variant."""

    first_session: Literal["adapter", "ssf", "vpt", "vpt_shallow", "vpt_deep", "full", "lora"] = Field("adapter",
        description="variant: what the first task adapts (APER with Adapter, SSF, VPT-Shallow, VPT-Deep, Finetune = full)")


@learner("aper")
class APER(NCM):
    Settings = APERSettings
    title = "APER"

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        # the backbone as it was pre-trained, where nothing of it stays as it was
        full = self.config.first_session == "full"
        self.pretrained = {name: t.detach().clone() for name, t in self.net.backbone.model.state_dict().items()} if full else {}

    @classmethod
    def title_of(cls, config: APERSettings) -> str:
        return f"{cls.title}-{'finetune' if config.first_session == 'full' else config.first_session}"

    @property
    def feature_dim(self) -> int:
        return 2 * self.net.backbone.dim

    def features(self, images: Tensor) -> Tensor:
        """Pre-trained features beside the adapted ones, (N, 2 D)."""
        return features_of_passes(self.net.features, images, [self.as_pretrained(), nullcontext()])

    def as_pretrained(self) -> AbstractContextManager[None]:
        """Inside, the backbone is the pre-trained one."""
        model = self.net.backbone.model
        return under_state(model, self.pretrained) if self.config.first_session == "full" else switched_off(model)

    # State ---------------------------------------------------------------------------------------------------

    def extra_state(self) -> dict[str, Tensor]:
        return {**super().extra_state(), **{PRETRAINED + name: tensor for name, tensor in self.pretrained.items()}}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_extra_state(state)
        self.pretrained = {name.removeprefix(PRETRAINED): tensor for name, tensor in state.items() if name.startswith(PRETRAINED)}

    def memory_bytes(self) -> dict[str, int]:
        """The pre-trained backbone, kept beside the one trained in full, counts among the parameters."""
        kept, pretrained = super().memory_bytes(), sum(tensor.nbytes for tensor in self.pretrained.values())
        return {**kept, "statistics": kept["statistics"] - pretrained, "parameters": kept["parameters"] + pretrained}
