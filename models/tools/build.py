"""From a config to a learner with its data and its network; what the trainer, a dry run and a prediction share."""

from __future__ import annotations

from pathlib import Path

from lightning_fabric import Fabric

from convs.architecture import check_image_size
from convs.backbones import Backbone, BackboneEntry, build_backbone, describe
from convs.network import IncrementalNet
from models.base import BaseLearner
from models.registry import learner_class
from utils.config import Config, DatasetSpec, MethodSettings
from utils.data.added import Learned
from utils.data.data_manager import DataManager
from utils.data.registry import REGISTRY as DATASETS
from utils.data.registry import dataset_info
from utils.files import locate
from utils.machine.distributed import first_process_first


def make_learner(config: MethodSettings, seed: int, fabric: Fabric, *,
                 share_images_of: DataManager | None = None, learned: Learned | None = None) -> BaseLearner:
    """The learner before its first task; its data and network are `learner.data` and `learner.net`.

    Args:
        config: resolved settings.
        seed: of the class order.
        share_images_of: another seed's data, whose decoded images and workers are taken over.
        learned: what a run knows that is extended by one task.

    Raises:
        UserError: data, weights or settings are not as they should be.
    """
    with first_process_first(fabric):  # downloads happen once
        backbone = make_backbone(config)
    with first_process_first(fabric):
        data = DataManager(config, seed, channels=backbone.channels, rank=fabric.global_rank, world_size=fabric.world_size,
                           device=fabric.device, share_images_of=share_images_of, learned=learned,
                           old_images=not learner_class(config.model_name).rehearsal_free, **normalisation(config, backbone))
    learner = learner_class(config.model_name)(config, data, IncrementalNet(backbone), fabric)
    backbone.speed_up(compile=config.compile, channels_last=config.channels_last)  # once LoRA is in
    return learner


def normalisation(config: MethodSettings, backbone: Backbone) -> dict[str, tuple[float, ...]]:
    """`mean` and `std` that `normalize` puts in the place of the data set's, as arguments of `DataManager`; none for "dataset"."""
    return {"backbone": {"mean": backbone.mean, "std": backbone.std}, "unit": {"mean": (0.0,), "std": (1.0,)}}.get(config.normalize, {})


def make_backbone(config: MethodSettings, device: str = "cpu") -> Backbone:
    """The backbone of a config with its weights; device "meta" gives shapes alone. Raises UserError."""
    check_images_fit(config)
    return build_backbone(backbone_entry(config), pretrained=config.pretrained, reset_norm=config.reset_norm,
                          pool=config.pool, drop_path=config.drop_path, grad_checkpointing=config.grad_checkpointing,
                          generator_seed=config.torch_seed, device=device)


def backbone_entry(config: Config) -> BackboneEntry:
    """What `convnet_type` describes. Raises UserError."""
    spec = config.convnet_type
    return describe(spec) if isinstance(spec, str) else describe(spec.timm, spec.args, spec.weights, spec.weights_key)


def check_images_fit(config: Config) -> None:
    """The commonest mistake, told before anything is loaded: images of another size than the backbone takes. Raises UserError."""
    spec = config.dataset
    if isinstance(spec, DatasetSpec) and spec.layout != "synthetic" and spec.image_size is None and not _are_there(spec):
        return  # arrays have their own size; that the data are missing is told when they are read
    info, entry = dataset_info(spec), backbone_entry(config)

    def ways_out(size: int) -> list[str]:
        if isinstance(spec, DatasetSpec):
            return [f'"image_size": {size} in the "dataset" object']
        return [f'"dataset": "{name}"' for name, other in DATASETS.items()
                if other.info.image_size == size and name.partition("_")[0] == info.name.partition("_")[0]]

    args = {**entry.args, **({"global_pool": config.pool} if config.pool else {})}
    check_image_size(entry.timm_name, args, info.image_size, f"the images of data set {info.name}", ways_out)


def _are_there(spec: DatasetSpec) -> bool:
    return any(Path(locate(path)).exists() for path in (spec.root, spec.train) if path)
