"""From a config to a learner with its data and its network; what the trainer, a dry run and a prediction share."""

from __future__ import annotations

from lightning_fabric import Fabric

from convs.backbones import Backbone, BackboneEntry, build_backbone, describe
from convs.network import IncrementalNet
from models.base import BaseLearner
from models.registry import learner_class
from utils.config import Config, MethodSettings
from utils.data.data_manager import DataManager


def make_learner(config: MethodSettings, seed: int, fabric: Fabric, *,
                 share_images_of: DataManager | None = None) -> BaseLearner:
    """The learner before its first task; its data and network are `learner.data` and `learner.net`.

    Args:
        config: resolved settings.
        seed: of the class order.
        share_images_of: another seed's data, whose decoded images and workers are taken over.

    Raises:
        UserError: data, weights or settings are not as they should be.
    """
    backbone = make_backbone(config)
    from_backbone = {"mean": backbone.mean, "std": backbone.std} if config.normalize == "backbone" else {}
    data = DataManager(config, seed, channels=backbone.channels, rank=fabric.global_rank, world_size=fabric.world_size,
                       device=fabric.device, share_images_of=share_images_of, **from_backbone)
    learner = learner_class(config.model_name)(config, data, IncrementalNet(backbone), fabric)
    backbone.speed_up(compile=config.compile, channels_last=config.channels_last)  # once LoRA is in
    return learner


def make_backbone(config: MethodSettings, device: str = "cpu") -> Backbone:
    """The backbone of a config with its weights; device "meta" gives shapes alone. Raises UserError."""
    return build_backbone(backbone_entry(config), pretrained=config.pretrained, reset_norm=config.reset_norm,
                          pool=config.pool, drop_path=config.drop_path, grad_checkpointing=config.grad_checkpointing,
                          generator_seed=config.torch_seed, device=device)


def backbone_entry(config: Config) -> BackboneEntry:
    """What `convnet_type` describes. Raises UserError."""
    spec = config.convnet_type
    return describe(spec) if isinstance(spec, str) else describe(spec.timm, spec.args, spec.weights)
