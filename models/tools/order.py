"""An order of classes by how alike the backbone finds them: `python main.py order --config FILE --by similar --out order.json`.

A class is the mean of its training images' features in the pre-trained backbone, before any training. "similar" puts classes that are
alike by cosine into one task, "dissimilar" into different ones; the file is for "class_order" of a config (docs/protocols.md).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric

from convs.backbones import Backbone, check_finite
from models.tools.build import make_backbone, normalisation
from utils.config import MethodSettings
from utils.data.data_manager import DataManager
from utils.errors import UserError
from utils.files import storage_errors_told, write_atomic
from utils.formulas.class_orders import cosines, similar_order, spread_order, within_tasks
from utils.json_files import json_text
from utils.machine.device import make_fabric
from utils.report.describe import backbone_words

PLAIN = {"class_order": None, "few_shot": None, "long_tail": None, "blurry": None, "added": None, "val_fraction": 0.0, "compile": False}


def write_order(config: MethodSettings, by: str, out: Path, images_per_class: int, device: str) -> str:
    """Write the order file; returns what was found, in words.

    Args:
        by: "similar" or "dissimilar".
        images_per_class: at most so many training images of each class are looked at.

    Raises:
        UserError: the config has no tasks of classes, or data, weights or the place for the file are not as they should be.
    """
    if out.suffix != ".json":
        raise UserError(f"--out: got {out}, allowed: a name that ends in .json, as \"class_order\" of a config names it")
    if config.scenario == "domain" or config.all_at_once or config.blurry is not None:
        what = "scenario 'domain'" if config.scenario == "domain" else "all_at_once" if config.all_at_once else "blurry"
        raise UserError(f"order: got a config with {what}, allowed: one whose tasks have new classes each; its task sizes say what comes "
                        "together")
    plain = config.model_copy(update={**PLAIN, "seed": config.seeds[0]})
    fabric = make_fabric(device, plain.precision, plain.tf32)
    backbone = make_backbone(plain)
    data = DataManager(plain, plain.seeds[0], channels=backbone.channels, device=fabric.device, **normalisation(plain, backbone))
    similarity = cosines(class_means(data, backbone, fabric, images_per_class, plain.test_batch_size or plain.batch_size,
                                     plain.precision))
    sizes, seeds_order = data.stream.task_sizes, np.arange(data.stream.num_classes)  # labels are places in the seed's order
    order = similar_order(similarity)
    if by == "dissimilar":
        order = spread_order(order, sizes)
    found, before = (within_tasks(similarity, each, sizes) for each in (order, seeds_order))
    content = {"class_order": named(data, order), "by": by, "data_set": config.dataset_name,
               "backbone": backbone_words(config.model_dump()), "task_sizes": sizes, "mean_cosine_within_tasks": found,
               "seed": plain.seeds[0], "mean_cosine_within_tasks_in_the_order_of_the_seed": before}
    with storage_errors_told(out) as place:
        write_atomic(place, json_text(content))
    told = ["-" if value is None else f"{value:.3f}" for value in (found, before)]
    return (f"{out}: {len(order)} classes; mean cosine of two classes of one task {told[0]}, in the order of seed {plain.seeds[0]} "
            f"{told[1]}. "
            f'Use it with "class_order": "{out}" and one seed')


@torch.inference_mode()
def class_means(data: DataManager, backbone: Backbone, fabric: Fabric, images_per_class: int, batch_size: int,
                precision: str = "32-true") -> np.ndarray:
    """(K, D) float64 mean feature of each class's first training images, by new label. Raises UserError for a class without any."""
    indices = data.task_indices("train", range(data.stream.num_tasks))
    labels = data.labels_of("train", indices)
    counts = np.bincount(labels, minlength=data.stream.num_classes)
    if not counts.all():
        raise UserError(f"order: class {data.stream.class_names[int(counts.argmin())]!r} has no training image, so it is like no other; "
                        'take it out with "classes" of the dataset object')
    by_class = np.argsort(labels, kind="stable")
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)  # of each image in its class
    chosen = np.sort(indices[by_class[rank < images_per_class]])
    backbone = backbone.to(fabric.device).eval()
    sums = torch.zeros(len(counts), backbone.dim, dtype=torch.float64)
    for images, targets in data.batches("train", indices=chosen, batch_size=batch_size, augment=False):
        with fabric.autocast():
            features = backbone(fabric.to_device(images)).float()
        check_finite(features, precision)
        sums.index_add_(0, targets.cpu(), features.double().cpu())
    return sums.numpy() / np.minimum(counts, images_per_class)[:, None]


def named(data: DataManager, order: np.ndarray) -> list[int | str]:
    """The classes by name; by number where two have the same name."""
    names = data.stream.class_names
    if len(set(names)) == len(names):
        return [names[label] for label in order]
    return [data.stream.class_order[label] for label in order]
