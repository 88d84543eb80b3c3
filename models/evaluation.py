"""Features of images, kept while they stay true, and accuracies over all classes seen so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from convs.backbones import check_finite
from models import shared_features
from models.by_class import positions_by_class
from utils.data.data_manager import Batches
from utils.data.stream import TaskStream
from utils.formulas.metrics import Evaluation, evaluate_predictions
from utils.machine.distributed import gather_rows
from utils.run.interrupt import check_stop

TOP_K = 5
SCORED_AT_ONCE = 512  # features per call of `scores`; bounds a read-out's memory


class Classifier(shared_features.SharesFeatures, Protocol):
    """What evaluation asks of a learner."""

    stream: TaskStream
    feature_cache: dict[tuple[str, int], tuple[Tensor, Tensor]]
    temperature: float

    @property
    def feature_dim(self) -> int: ...
    def features(self, images: Tensor) -> Tensor: ...
    def feature_recipe(self) -> Mapping[str, Any] | None: ...
    def scores(self, features: Tensor) -> Tensor: ...
    def fold_domains(self, scores: Tensor) -> Tensor: ...
    def to_probabilities(self, scores: Tensor) -> Tensor: ...
    def classifier_before_alignment(self) -> Callable[[Tensor], Tensor] | None: ...


def extract(learner: Classifier, split: str, task: int) -> tuple[Tensor, Tensor]:
    """Features (N, D) float32 and labels (N,) of one task's images under the test transform.

    Each process extracts its part of the images; all get the features of every image, once, in the data's order. Kept in
    `feature_cache` while they stay true: test features until the next training, those of a frozen backbone for the whole run.
    """
    key = (split, task)
    if key in learner.feature_cache:
        return learner.feature_cache[key]
    found = extract_pass(learner, split, tasks=task)
    if split == "test" or not learner.backbone_trains:
        learner.feature_cache[key] = found
    return found


def plain_batches(learner: Classifier, split: str, **which: Any) -> Batches:
    """The pass over images, under the test transform, of `extract_pass`."""
    batch_size = learner.config.test_batch_size or learner.config.batch_size
    return learner.data.batches(split, batch_size=batch_size, augment=False, **which)


def extract_pass(learner: Classifier, split: str, **which: Any) -> tuple[Tensor, Tensor]:
    """As `extract`, for any images (`tasks` or `indices` of `DataManager.batches`); kept on disk where runs share features, else not."""
    store = shared_features.store_of(learner, split, learner.feature_recipe())
    if store is None:
        return computed_pass(learner, split, **which)
    indices = which["indices"] if "indices" in which else learner.data.task_indices(split, which["tasks"])
    labels = torch.from_numpy(learner.data.labels_of(split, indices)).to(learner.fabric.device)
    return shared_features.read(learner, store, split, indices, lambda some: computed_pass(learner, split, indices=some)[0]), labels


@torch.no_grad()  # not inference mode: what a method keeps of it may meet autograd later
def computed_pass(learner: Classifier, split: str, *, features: Callable[[Tensor], Tensor] | None = None,
                  **which: Any) -> tuple[Tensor, Tensor]:
    """Features (N, D) float32 and labels (N,) from a pass over the images.

    Args:
        features: images -> features (B, D); default the learner's.
    """
    fabric, net, read = learner.fabric, learner.net, features or learner.features
    was_training = net.training
    net.eval()
    found, labels = [], []
    for images, targets in plain_batches(learner, split, **which):
        check_stop()
        with fabric.autocast():
            found.append(read(fabric.to_device(images)).float())
        labels.append(targets)
    net.train(was_training)
    own = torch.cat(found) if found else torch.zeros(0, learner.feature_dim, device=fabric.device)
    check_finite(own, learner.config.precision)
    own_labels = torch.cat(labels) if labels else torch.zeros(0, dtype=torch.long)
    return gather_rows(fabric, own), gather_rows(fabric, own_labels.to(fabric.device))


def extract_tasks(learner: Classifier, split: str, tasks: Sequence[int]) -> tuple[Tensor, Tensor]:
    """`extract` for several tasks, one after another; small tasks share their batches."""
    batch_size = learner.config.test_batch_size or learner.config.batch_size
    waiting: list[int] = []
    for task in tasks:
        if (split, task) not in learner.feature_cache:
            waiting.append(task)
        if waiting and (task == tasks[-1] or learner.data.count(split, waiting) >= batch_size):
            _extract_together(learner, split, waiting)
            waiting = []
    found = [extract(learner, split, task) for task in tasks]
    return torch.cat([features for features, _ in found]), torch.cat([labels for _, labels in found])


def _extract_together(learner: Classifier, split: str, tasks: list[int]) -> None:
    """One pass over the images of `tasks`, kept task by task where `extract` would keep them."""
    if len(tasks) == 1 or (split != "test" and learner.backbone_trains):
        return  # `extract` does it
    features, labels = extract_pass(learner, split, tasks=tasks)
    owner = torch.as_tensor(learner.stream.task_of_class, device=labels.device)[labels]
    found = positions_by_class(owner, range(tasks[0], tasks[-1] + 1))  # by task
    for task in tasks:
        rows = found[task - tasks[0]]
        learner.feature_cache[split, task] = features[rows], labels[rows]


@torch.inference_mode()
def evaluate(learner: Classifier, task: int, split: str = "test") -> Evaluation:
    """Accuracies on the images of tasks 0..task, over all classes seen so far; None where there is no image.

    Images are scored in batches across tasks, and of the scores (N, K) only the best classes are kept.
    """
    stream = learner.stream
    features, labels = extract_tasks(learner, split, range(task + 1))
    task_of_class = torch.as_tensor(stream.task_of_class[: stream.classes_upto(task)], device=features.device)  # (K,)
    unaligned = learner.classifier_before_alignment() if split == "test" else None
    best, own, confidences, uncalibrated, before = [], [], [], [], []
    for part, targets in zip(features.split(SCORED_AT_ONCE), labels.split(SCORED_AT_ONCE), strict=True):
        if not len(part):  # torch splits nothing into one part
            continue
        scores = learner.scores(part)  # (n, K)
        best.append(best_classes(learner, scores))
        other_task = task_of_class != task_of_class[targets][:, None]  # (n, K)
        own.append(scores.masked_fill(other_task, -torch.inf).argmax(dim=1))
        confidences.append(learner.to_probabilities(scores).amax(dim=1))
        if learner.temperature != 1:
            uncalibrated.append(learner.fold_domains(scores).softmax(dim=1).amax(dim=1))
        if unaligned is not None:
            before.append(unaligned(part).argmax(dim=1))
    nothing = labels.new_empty(0, 1)
    columns = [labels, *(torch.cat(guesses or [nothing[:, 0]]) for guesses in (own, before or own))]
    found = torch.cat([torch.stack(columns, dim=1), torch.cat(best or [nothing])], dim=1).cpu().numpy()
    return evaluate_predictions(found[:, 3:], found[:, 0], found[:, 1], stream.task_of_class, task=task,
                                known_classes=stream.classes_before(task), period=stream.label_period,
                                confidences=torch.cat(confidences).cpu().numpy() if confidences else None,
                                uncalibrated=torch.cat(uncalibrated).cpu().numpy() if uncalibrated else None,
                                earlier_predictions=found[:, 2] if before else None)


@torch.inference_mode()
def accuracy_on_all_domains(learner: Classifier) -> float | None:
    """Domain-incremental: percent right on the test images of all domains, of those still to come too; else None."""
    stream = learner.stream
    if stream.label_period is None:
        return None
    features, labels = extract_tasks(learner, "test", range(stream.num_tasks))
    correct = sum((best_classes(learner, learner.scores(part))[:, 0] == targets % stream.label_period).sum()
                  for part, targets in zip(features.split(SCORED_AT_ONCE), labels.split(SCORED_AT_ONCE), strict=True) if len(part))
    return 100 * int(correct) / len(labels) if len(labels) else None


def best_classes(learner: Classifier, scores: Tensor) -> Tensor:
    """The up to five best classes, best first (N, k). Domain-incremental: of all heads modulo the classes."""
    scores = learner.fold_domains(scores)
    return scores.topk(min(TOP_K, scores.shape[1]), dim=1).indices
