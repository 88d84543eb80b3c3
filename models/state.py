"""What a checkpoint holds of a learner, and how it comes back: the state contract (docs/add_a_method.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from convs.network import IncrementalNet
from convs.parts import added_parameters
from convs.weights import tensors_sha256
from utils.data.stream import TaskStream


class LearnerState:
    """A parent of `BaseLearner`, which has these attributes: tensors to save, tensors to load."""

    net: IncrementalNet
    stream: TaskStream
    task: int
    has_heads: bool
    ever_trained: set[str]
    feature_cache: dict[tuple[str, int], tuple[Tensor, Tensor]]

    def extra_state(self) -> dict[str, Tensor]:
        """Tensors beside the network that the next task needs; empty here."""
        return {}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `extra_state` gave."""

    def state_parts(self) -> dict[str, tuple[object, ...]]:
        """Prefixes of names in `extra_state`, with the objects that the tensors under each follow from: while these are the same
        objects, a checkpoint need not write the tensors again. None here.
        """
        return {}

    def epoch_state(self) -> dict[str, Tensor]:
        """Tensors that change between the epochs of a task and that its next epoch needs; empty here."""
        return {}

    def load_epoch_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `epoch_state` gave; `state` may hold the optimiser's tensors too."""

    def files(self, task: int) -> dict[str, Mapping[str, Tensor]]:
        """Tensors that a method wants written beside the checkpoints after `task`, by the file's name without suffix; none here."""
        return {}

    def network_state(self) -> dict[str, Tensor]:
        """The network's tensors that can differ from the pre-trained ones: of the backbone's own parameters those that ever trained."""
        never = self.never_trained()
        return {name: tensor for name, tensor in self.net.state_dict().items() if name not in never}

    def never_trained(self) -> set[str]:
        """Names in `net` of the pre-trained parameters that are as they were; none of a part's, which begins with the method."""
        backbone = {name for name, _ in self.net.named_parameters() if name.startswith("backbone.")}
        return backbone - self.ever_trained - added_parameters(self.net)

    def untrained_sha256(self, saved: Iterable[str]) -> str:
        """Checksum of the pre-trained tensors that a state with the tensors `saved` leaves out."""
        saved = set(saved)
        return tensors_sha256((name, tensor) for name, tensor in self.net.state_dict().items()
                              if name not in saved and not name.endswith("_extra_state"))

    def load_network_state(self, state: Mapping[str, Tensor], task: int) -> None:
        """Restore a network that has learned tasks 0..task."""
        while self.has_heads and len(self.net.heads) <= task:
            self.net.add_head(self.stream.task_sizes[len(self.net.heads)])
        for head in self.net.heads:
            head.requires_grad_(False)
        self.load_trained(state)
        self.task = task
        self.feature_cache.clear()

    def grown(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The network's state of a run with fewer tasks as one of this learner's: what the method's parts have for tasks to come is new."""
        own = self.net.state_dict()
        return {**{name: own[name] for name in added_parameters(self.net) if name not in state}, **state}

    def load_trained(self, state: Mapping[str, Tensor]) -> None:
        """Copy what `network_state` gave into the network, whose heads are there already."""
        missing, unexpected = self.net.load_state_dict(state, strict=False)
        assert not unexpected, f"checkpoint has unknown tensors {unexpected[:5]}"
        may_be_missing = self.never_trained()
        absent = [name for name in missing if name not in may_be_missing]
        assert not absent, f"checkpoint lacks tensors {absent[:5]}"
        self.ever_trained |= {name for name, _ in self.net.named_parameters() if name.startswith("backbone.") and name in state}
