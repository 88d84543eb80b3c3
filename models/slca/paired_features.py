"""Features of the same images under the backbone before a task and after it: what shows how the features have moved."""

from __future__ import annotations

import torch
from torch import Tensor

from convs.backbones import Backbone
from models.slca.gaussian_learner import GaussianLearner
from utils.machine.distributed import gather_rows


@torch.no_grad()
def paired_features(learner: GaussianLearner, before: Backbone, task: int) -> tuple[Tensor, Tensor]:
    """Features (n, D) float32 of the task's training images under `before` and under the network as it is, test transform.

    Row i of both is the same image; all processes get all rows.
    """
    c, fabric = learner.config, learner.fabric
    learner.net.eval()
    old, new = [], []
    for images, _ in learner.data.batches("train", task, batch_size=c.test_batch_size or c.batch_size, augment=False):
        images = fabric.to_device(images)
        with fabric.autocast():
            old.append(before(images).float())
            new.append(learner.net.features(images).float())
    empty = torch.zeros(0, learner.gaussians.means().shape[1], device=fabric.device)
    return gather_rows(fabric, torch.cat([empty, *old])), gather_rows(fabric, torch.cat([empty, *new]))
