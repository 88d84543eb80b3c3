"""Features that runs share (`feature_cache`): whose features may be, how a pass reads them, and stage 1 on features instead of images.

A feature is shared where nothing but the pre-trained backbone makes it: no parameter of it ever trained, no part was put on it, and the
method says what else decides its features (`BaseLearner.feature_recipe`). On a CPU a feature has the same bits in whichever batch it
was computed (tests/models/test_shared_features.py), so that figures do not depend on what was computed before.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from convs.backbone_entries import describe
from convs.network import IncrementalNet
from convs.parts import added_parameters
from convs.weights import tensors_sha256
from utils.config import MethodSettings
from utils.data.data_manager import DataManager
from utils.data.feature_store import GIB, FeatureStore
from utils.data.places import home_expanded
from utils.machine.environment import cpu_name

if TYPE_CHECKING:
    from models.base import BaseLearner

VERSIONS = ("torch", "torchvision", "timm", "pillow")  # what computes a feature from an image
FEATURES_NDIM = 2  # (N, D)
PLAIN = {"views": 1}  # of the backbone's features of an image, as it is


class FeatureBatches:
    """One pass over features (B, D) and labels (B,), which nobody has to make ahead; iterating again gives the same batches again."""

    def __init__(self, features: Tensor, labels: Tensor, rows: Sequence[np.ndarray]) -> None:
        self._features, self._labels, self._rows = features, labels, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((self._features[rows], self._labels[rows]) for rows in map(torch.from_numpy, self._rows))

    def before(self, following: object) -> FeatureBatches:
        """This pass: no worker has anything to make."""
        return self


@dataclass(frozen=True)
class TaskFeatures:
    """A task's training images as features, to be drawn in batches like the images."""

    data: DataManager
    features: Tensor  # (n, D)
    labels: Tensor  # (n,)

    def batches(self, batch_size: int, shuffle_seed: int) -> FeatureBatches:
        """The batches that `DataManager.batches` gives of the images."""
        rows = self.data.batch_members(np.arange(len(self.labels)), batch_size=batch_size, shuffle_seed=shuffle_seed)
        return FeatureBatches(self.features, self.labels, rows)


class SharesFeatures(Protocol):
    """What is asked of a learner."""

    data: DataManager
    net: IncrementalNet
    fabric: Fabric
    ever_trained: set[str]
    feature_stores: dict[str, FeatureStore]

    @property
    def config(self) -> MethodSettings: ...
    @property
    def backbone_trains(self) -> bool: ...


# Where they are kept -----------------------------------------------------------------------------------------


def store_of(learner: SharesFeatures, split: str, method_recipe: Mapping[str, Any] | None) -> FeatureStore | None:
    """Where the learner's features of the images of `split` are kept; None where they are not to be shared.

    Args:
        method_recipe: what the method adds to the recipe; None: its features are its own.
    """
    c = learner.config
    if c.feature_cache == "none" or method_recipe is None or not as_pretrained(learner):
        return None
    of_input = learner.data.input_recipe(split)
    if of_input is None:
        return None
    asked = {"input": of_input, "method": dict(method_recipe)}
    name = json.dumps(asked, sort_keys=True)
    if name not in learner.feature_stores:
        recipe = {**asked, "backbone": backbone_recipe(learner), "arithmetic": arithmetic_recipe(learner)}
        root = home_expanded(c.data_root) / "cache" / "features"
        learner.feature_stores[name] = FeatureStore(root, recipe, int(c.feature_cache_gb * GIB))
    return learner.feature_stores[name]


def as_pretrained(learner: SharesFeatures) -> bool:
    """Whether the learner's backbone is the pre-trained one and nothing else. Several processes, whose passes are cut, share nothing."""
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in learner.net.backbone.modules())
    return learner.fabric.world_size == 1 and not (learner.backbone_trains or learner.ever_trained or hooked
                                                   or added_parameters(learner.net))


def of_parent(learner: object, parent: type) -> bool:
    """Whether a learner's features, and what it put on the backbone, are those of this parent: nothing else decides them."""
    return all(getattr(type(learner), name) is getattr(parent, name) for name in ("features", "prepare_backbone"))


def backbone_recipe(learner: SharesFeatures) -> dict[str, Any]:
    """The weights as they were loaded, and the architecture: timm's name, arguments and modules."""
    c, backbone = learner.config, learner.net.backbone
    spec = c.convnet_type
    entry = describe(spec) if isinstance(spec, str) else describe(spec.timm, spec.args, spec.weights, spec.weights_key)
    parts = getattr(getattr(backbone, "read", None), "names", ("cls",))  # of a TokenBackbone
    return {"sha256": tensors_sha256(backbone.state_dict().items()), "timm": entry.timm_name, "args": repr(sorted(entry.args.items())),
            "pool": c.pool, "modules": repr(backbone), "parts": list(parts)}


def arithmetic_recipe(learner: SharesFeatures) -> dict[str, Any]:
    """Settings, versions and machine that a feature's last bits depend on."""
    c, device = learner.config, learner.fabric.device
    machine = ([cpu_name(), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()] if device.type == "cpu"
               else [torch.cuda.get_device_name(device)])
    return {"precision": c.precision, "tf32": c.tf32, "compile": c.compile, "channels_last": c.channels_last,
            "deterministic": c.deterministic, "device": [device.type, *machine],
            "versions": {name: metadata.version(name) for name in VERSIONS}}


# Reading them ------------------------------------------------------------------------------------------------


def read(learner: SharesFeatures, store: FeatureStore, split: str, indices: np.ndarray, compute: Callable[[np.ndarray], Tensor]) -> Tensor:
    """Features (n, D) float32 of the images at `indices`: those that are kept, and what `compute` gives of the others, kept then."""
    digests = learner.data.digests(split, indices)
    known, rows = store.read(digests)
    missing = np.flatnonzero(~known)
    computed = compute(indices[missing]) if len(missing) or not len(indices) else None
    if computed is not None:
        store.add(digests[missing], computed.cpu().numpy())
    if not rows:
        assert computed is not None, "neither kept nor computed"
        return computed
    found = torch.from_numpy(np.empty((len(indices), len(rows[0])), dtype=np.float32))
    found[torch.from_numpy(known)] = torch.from_numpy(np.stack(rows))
    if computed is not None:
        found[torch.from_numpy(missing)] = computed.cpu()
    return found.to(learner.fabric.device)


@contextmanager
def instead_of_images(learner: BaseLearner, task: int, compute: Callable[[np.ndarray], Tensor]) -> Iterator[None]:
    """Inside, stage 1 reads the task's features instead of its images, where the figures stay the same: nothing is augmented.

    Args:
        compute: positions of training images -> features (n, D) of the backbone alone.
    """
    store = store_of(learner, "train", PLAIN) if learner.trains_on_features and learner.feature_recipe() is not None else None
    if store is None or learner.data.augments:
        yield
        return
    indices, backbone = learner.data.task_indices("train", task), learner.net.backbone
    labels = torch.from_numpy(learner.data.labels_of("train", indices)).to(learner.fabric.device)
    learner.task_features = TaskFeatures(learner.data, read(learner, store, "train", indices, compute), labels)
    backbone.forward = _passing_features(backbone.forward)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        learner.task_features = None
        del backbone.forward  # the class's own again


def _passing_features(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A backbone's `forward` that gives features (N, D) back as they are; images, of a measurement inside the task, go through it."""
    return lambda given: given if given.ndim == FEATURES_NDIM else forward(given)
