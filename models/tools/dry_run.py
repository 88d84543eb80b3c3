"""What a config would run, from shapes alone: no data, no weights, no device is needed (`--dry_run`)."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from convs.backbones import build_backbone
from convs.network import IncrementalNet
from models.base import FLOAT_BYTES, BaseLearner
from models.registry import learner_class, resolve_config
from models.tools.build import backbone_entry, check_images_fit
from utils.config import Config, MethodSettings
from utils.data.check import check_data
from utils.data.registry import dataset_info
from utils.data.stream import TaskStream
from utils.methods import resolve_name
from utils.report.describe import protocol_words

META = torch.device("meta")
SGD_COPIES = 3  # of each trained parameter: itself, its gradient, its momentum


@dataclass(frozen=True)
class _Shapes:
    """Stands where a learner expects Fabric: everything lives on the meta device, which has shapes but no numbers."""

    device: torch.device = META


@dataclass(frozen=True)
class Estimate:
    """Bytes of one training step, computed from shapes."""

    parameters: int  # weights, gradients and momentum
    activations: int  # what the forward pass keeps for the backward pass, for one batch
    statistics: int  # of all classes at the end

    @property
    def total(self) -> int:
        return self.parameters + self.activations + self.statistics


def count_parameters(learner: BaseLearner) -> dict[str, int]:
    """Numbers of parameters: all, and those that train in the backbone and in the heads."""
    net = learner.net
    return {"all": sum(p.numel() for p in net.parameters()),
            "trained_backbone": sum(p.numel() for p in net.backbone.parameters() if p.requires_grad),
            "trained_heads": sum(p.numel() for p in net.heads.parameters())}


def describe_run(config: Config, name: str = "") -> str:
    """The dry run's text: settings, tasks, parameters, memory.

    Raises:
        UserError: the data are there but wrong, or the config asks for tasks or a backbone that cannot be.
    """
    config = resolve_config(config)
    data = check_data(config)
    stream, train_images = data.stream, data.train_images
    check_images_fit(config)
    learner = shape_learner(config, stream)
    numbers, estimate = count_parameters(learner), estimate_memory(config, learner, train_images)
    info = dataset_info(config.dataset)
    at_once = math.ceil(config.batch_size / config.accumulate)
    images = "an unknown number of" if train_images is None else f"{train_images:,}"
    return "\n".join([
        f"{name or config.model_name}: {learner.title} ({resolve_name(config.model_name)}) on {info.name}, dry run",
        "", "settings", json.dumps(config.model_dump(mode="json"), indent=2),
        "", f"tasks: {stream.num_classes} classes in {stream.num_tasks} tasks of {_sizes(stream.task_sizes)}; {images} training images; "
        f"{len(config.seeds)} seed(s)",
        *([f"protocol: {words}"] if (words := protocol_words(config.model_dump())) else []),
        *([f"data, not on this machine: {data.missing}"] if data.missing else []),
        f"parameters: {numbers['all']:,} in all, {numbers['trained_backbone']:,} trained in the backbone, "
        f"{numbers['trained_heads']:,} trained in the heads",
        f"memory, estimated: {_gib(estimate.total)} = {_gib(estimate.parameters)} weights, gradients and momentum + "
        f"{_gib(estimate.activations)} activations of {at_once} images at once in {config.precision} + "
        f"{_gib(estimate.statistics)} statistics",
    ])


@dataclass(frozen=True)
class _NoImages:
    """Stands where a learner expects its data: tasks alone."""

    stream: TaskStream


def shape_learner(config: MethodSettings, stream: TaskStream) -> BaseLearner:
    """The learner with all its heads, on the meta device."""
    backbone = build_backbone(backbone_entry(config), pretrained=False, reset_norm=config.reset_norm, pool=config.pool, device="meta")
    net = IncrementalNet(backbone)
    learner = learner_class(config.model_name)(config, _NoImages(stream), net, _Shapes())
    if learner.has_heads:
        for size in stream.task_sizes:
            net.add_head(size)
    return learner


def estimate_memory(config: MethodSettings, learner: BaseLearner, train_images: int | None) -> Estimate:
    """Bytes of parameters, activations and statistics; the allocator's and the library's own needs come on top."""
    numbers = count_parameters(learner)
    trained = numbers["trained_backbone"] + max(learner.net.head_sizes, default=0) * learner.net.backbone.dim
    parameters = FLOAT_BYTES * (numbers["all"] + (SGD_COPIES - 1) * trained)
    classes = learner.stream.num_classes
    statistics = learner.planned_statistics(classes, None if train_images is None else train_images // classes)
    return Estimate(parameters, _activation_bytes(config, learner), statistics)


def _activation_bytes(config: MethodSettings, learner: BaseLearner) -> int:
    """What autograd saves in one forward pass of one image, counted on the meta device, times the images of a batch's part."""
    backbone = learner.net.backbone
    own = {p.untyped_storage()._cdata for p in backbone.parameters()}
    saved: dict[int, Tensor] = {}  # by storage, so that a tensor and its views count once; kept alive while counting

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in own:
            saved[storage] = tensor
        return tensor

    image = torch.empty(1, backbone.channels, backbone.image_size, backbone.image_size, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        backbone(image)
    half = 0.5 if config.precision != "32-true" else 1.0
    return int(sum(t.untyped_storage().nbytes() for t in saved.values()) * math.ceil(config.batch_size / config.accumulate) * half)


def _sizes(sizes: list[int]) -> str:
    return str(sizes[0]) if len(set(sizes)) == 1 else " + ".join(map(str, sizes))


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
