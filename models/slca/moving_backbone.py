"""What happens when the backbone of a method that keeps Gaussians has moved: which of its states is deployed, and whether the
statistics of old classes follow it. A parent of GaussianLearner; docs/beyond.md has the mathematics.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from convs.backbones import Backbone
from convs.views import mean_over_views
from models import evaluation
from models.first_session import AdaptsFirst
from models.slca.deployed import CANDIDATES, DRAWN_PER_CLASS, TrainedState, moved, own_tensors, put
from models.slca.drift import RHO, DriftSums, distance_from_identity, with_anchors
from models.slca.gaussians import ClassGaussians
from models.slca.readout import Discriminant
from utils.machine.distributed import gather_rows
from utils.rng import torch_generator
from utils.run.monitor import Monitor

MEASURED_IMAGES = 512  # of the new task, on which staleness is measured where nothing follows the backbone
STALE_COSINE = 0.95  # below this mean cosine the statistics are called stale,
STALE_DISTANCE = 0.1  # and above this |W - I| / |I|, since features share a large mean that keeps cosines high


@dataclass(frozen=True)
class Candidate:
    """A state of the backbone that may be deployed."""

    share: float  # of the way from the deployed state to the trained one
    tensors: Mapping[str, Tensor]  # what differs from the pre-trained backbone, by name
    operator: Tensor | None = None  # W (D, D) from the features of the deployed state to its own; None: the deployed state itself


class MovingBackbone(AdaptsFirst):
    """The deployed state of the backbone, and how far old statistics are from it."""

    gaussians: ClassGaussians  # one per class seen; they stay as they were when the class was learned, unless `drift` moves them

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.backbone_before: Backbone | None = None  # the deployed one of the task before, while a task is learned
        self.trained = TrainedState()  # where the next task trains on, if that is not the deployed state
        self.deployed_features: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}  # `feature_cache` of it, while a task is learned
        self.measured: dict[str, float] = {}  # of the last task, see `diagnostics`

    def begin_task(self, task: int) -> None:
        super().begin_task(task)
        if self.backbone_trains and (task > 0 or self.compares_first_state):
            self.backbone_before = copy.deepcopy(self.net.backbone).requires_grad_(False).eval()
            if self.config.move != "trained":
                self.deployed_features = {key: found for key, found in self.feature_cache.items() if key[0] == "test"}
        self.trained.load_into(self.net.backbone.model)

    @property
    def compares_first_state(self) -> bool:
        """Whether the first task too asks if its trained state is better than the pre-trained one, which it may then keep."""
        return self.config.move == "auto" and self.config.first_session == "none"

    def follow_backbone(self, task: int, monitor: Monitor, operator: Tensor | None = None) -> None:
        """With `drift` the statistics of all old classes move by the linear map that the new images show (models/slca/drift.py).

        Without it they stay, and how far they are off by now is measured on some of the new images, and told.

        Args:
            operator: that map (D, D), where it is known already.
        """
        follows = self.config.drift != "none"
        if operator is None or not follows:
            operator = self.drift_operators(task)[0] if follows else self.measured_operator(task)
        means = self.gaussians.means().to(operator)
        cosine = F.cosine_similarity(means, means @ operator).nanmean().item()
        self.measured |= {"mean_cosine": cosine, "operator_distance": distance_from_identity(operator)}
        told = f"{len(self.gaussians)} old classes: cosine of their means with where the backbone moved them {cosine:.3f}, " \
               f"|W - I| / |I| = {self.measured['operator_distance']:.3g}"
        if follows:
            self.gaussians.transport(operator)
            monitor.log(f"drift: the statistics follow the backbone. {told}")
        elif cosine < STALE_COSINE or self.measured["operator_distance"] > STALE_DISTANCE:
            monitor.log(f"warning: the statistics of old classes are stale. {told} (they hold from {STALE_COSINE} and up to "
                        f"{STALE_DISTANCE:g}). Let them follow with drift 'linear', move the backbone less (fewer epochs, a lower "
                        "bcb_lrscale, kd 1), or keep it as it is (bcb_lrscale 0 with readout 'rgda'); docs/own_data.md shows what each is "
                        "worth")
        else:
            monitor.log(f"statistics: {told}")

    @torch.no_grad()
    def drift_operators(self, task: int, states: Sequence[Mapping[str, Tensor]] = ({},)) -> list[Tensor]:
        """W (D, D) from the features of the new images, and of their anchors, before the task to those under each of `states`.

        What a state does not name stays as the network has it, which is left with the last one.
        """
        c, device, model = self.config, self.fabric.device, self.net.backbone.model
        generator = torch_generator(c.torch_seed, "anchors", task, self.fabric.global_rank, device=device)
        sums = DriftSums(self.net.backbone.dim, device, len(states))
        self.net.eval()
        for images, _ in self.data.batches("train", task, batch_size=c.test_batch_size or c.batch_size, augment=False):
            images = self.fabric.to_device(images)
            for view in with_anchors(images, generator) if c.drift_anchors else [images]:
                after = []
                with self.fabric.autocast():
                    for state in states:
                        put(model, state)
                        after.append(self.net.features(view))
                    sums.add(self.backbone_before(view), *after)
        sums.add_processes(self.fabric)
        return [sums.operator(c.rho, number) for number in range(len(states))]

    @torch.no_grad()
    def measured_operator(self, task: int) -> Tensor:
        """The same from some of the new images alone; their features after the task are those that the statistics take anyway."""
        c = self.config
        features, labels = self.extract("train", task)
        self.feature_cache["train", task] = features, labels  # until the task ends
        count = self.data.count("train", task)
        rows = np.linspace(0, count - 1, min(count, MEASURED_IMAGES)).astype(np.int64)
        before = [features.new_empty(0, self.net.backbone.dim)]
        for images, _ in self.data.batches("train", indices=self.data.task_indices("train", task)[rows],
                                           batch_size=c.test_batch_size or c.batch_size, augment=False):
            with self.fabric.autocast():
                before.append(mean_over_views(self.backbone_before, self.fabric.to_device(images), c.views).float())
        sums = DriftSums(self.net.backbone.dim, self.fabric.device)
        sums.add(gather_rows(self.fabric, torch.cat(before)), features[torch.from_numpy(rows).to(features.device)])
        return sums.operator(RHO[False])

    # The deployed state --------------------------------------------------------------------------------------

    def deploy(self, task: int, monitor: Monitor) -> Tensor | None:
        """Put the deployed state in place of the trained one, which is kept for the next task (models/slca/deployed.py).

        Returns:
            The drift operator to the new deployed state, where comparing shares has found it.
        """
        c = self.config
        if c.move == "trained":
            return None
        trained = self.trained.take_from(self.net.backbone.model)
        own = own_tensors(self.backbone_before.model)
        before = {name: own[name] for name in trained}
        if c.move == "average":
            chosen = Candidate(c.move_share, moved(before, trained, c.move_share, c.move_energy))
            self.feature_cache.clear()
        else:
            chosen = self.best_candidate(task, before, trained, monitor)
        put(self.net.backbone.model, chosen.tensors)
        if chosen.share == 0:  # nothing moved: what was read with it is true
            self.feature_cache |= self.deployed_features
        self.deployed_features = {}
        self.measured["share"] = chosen.share
        return chosen.operator

    def best_candidate(self, task: int, before: Mapping[str, Tensor], trained: Mapping[str, Tensor], monitor: Monitor) -> Candidate:
        """The candidate with the best expected accuracy, if it beats staying by more than the comparison's standard error.

        The features of the new images under it are in `feature_cache` then.
        """
        count = self.data.count("val", task)
        if not count:  # no class of the task has an image to spare
            monitor.log("move: no image of this task is held out to compare shares on; deployed at share 0")
            self.feature_cache.clear()
            return Candidate(0.0, before)
        stays = Candidate(0.0, before)  # the first of CANDIDATES
        expected = [self.expected_accuracy(task, stays)]
        error = 100 * (2 * (expected[0] / 100) * (1 - expected[0] / 100) / count) ** 0.5
        if expected[0] + error >= 100:  # none can beat that by more than the error
            monitor.log(f"move: expected accuracy {expected[0]:.1f} at share 0; standard error {error:.1f}, which no other share can "
                        "beat; deployed at share 0")
            return stays
        features = [self.feature_cache]
        held_out_before = self.feature_cache["val", task][0]
        states = [moved(before, trained, share, self.config.move_energy) for share in CANDIDATES[1:]]
        operators: Sequence[Tensor | None] = self.drift_operators(task, states) if len(self.gaussians) else [None] * len(states)
        candidates = [stays, *(Candidate(*found) for found in zip(CANDIDATES[1:], states, operators, strict=True))]
        for candidate in candidates[1:]:
            expected.append(self.expected_accuracy(task, candidate, held_out_before))
            features.append(self.feature_cache)
        best = max(range(len(candidates)), key=lambda number: expected[number])
        best = best if expected[best] - expected[0] > error else 0
        self.feature_cache = features[best]
        monitor.log("move: expected accuracy "
                    + ", ".join(f"{accuracy:.1f} at share {share:g}" for accuracy, share in zip(expected, CANDIDATES, strict=True))
                    + f"; standard error {error:.1f}; deployed at share {CANDIDATES[best]:g}")
        return candidates[best]

    @torch.no_grad()
    def expected_accuracy(self, task: int, candidate: Candidate, held_out_before: Tensor | None = None) -> float:
        """Percent right over all classes seen, expected of the candidate: new classes on held-out images, old ones on
        features drawn from their Gaussians, carried over by the drift operator with its error as noise.

        Leaves the features of the task's training and held-out images in `feature_cache`, which is new.

        Args:
            held_out_before: the held-out images' features (n, D) under the deployed state; of no use for that state itself.
        """
        put(self.net.backbone.model, candidate.tensors)
        self.feature_cache = {(split, task): evaluation.extract_pass(self, split, tasks=task) for split in ("train", "val")}
        features, labels = self.feature_cache["train", task]
        held_out, held_out_labels = self.feature_cache["val", task]
        gaussians = copy.deepcopy(self.gaussians)
        drawn, drawn_labels = held_out[:0], held_out_labels[:0]
        if len(gaussians):
            drawn, drawn_labels = self.drawn_under(candidate, held_out, held_out_before)
        if candidate.operator is not None:
            gaussians.transport(candidate.operator)
        gaussians.fit(features, labels, self.stream.classes_of(task))
        judge = Discriminant(self.config.rgda_a, self.config.rgda_g)
        judge.refresh(gaussians)
        new = (judge.scores(self.net, held_out).argmax(dim=1) == held_out_labels).float().mean()
        old = (judge.scores(self.net, drawn).argmax(dim=1) == drawn_labels).float().mean().nan_to_num()  # no old class: counts as nothing
        known, seen = self.stream.classes_before(task), self.stream.classes_upto(task)
        return 100 * ((known * old + (seen - known) * new) / seen).item()

    def drawn_under(self, candidate: Candidate, held_out: Tensor, held_out_before: Tensor | None) -> tuple[Tensor, Tensor]:
        """Features (n, D) and labels (n,) drawn from the old classes' Gaussians, as they would be under the candidate: carried over by its
        operator, with the error that this makes on the held-out images, (m, D) under it and before, as noise.
        """
        generator = torch_generator(self.config.torch_seed, "move", self.task, device=self.fabric.device)
        drawn, labels = self.gaussians.sample(self.gaussians.means(), DRAWN_PER_CLASS, generator)
        drawn = drawn.clone()
        self.gaussians.free_buffers()
        if candidate.operator is None or held_out_before is None:
            return drawn, labels
        predicted = held_out_before @ candidate.operator.to(held_out_before)
        wrong = (held_out - predicted).std(dim=0, correction=min(len(predicted) - 1, 1))  # (D,), 0 for one image
        noise = torch.randn(drawn.shape, generator=generator, device=drawn.device)
        return drawn @ candidate.operator.to(drawn) + wrong * noise, labels
