"""DER++: dark experience replay (Buzzega et al., NeurIPS 2020, arXiv 2004.07211).

Beside the new images every step replays two batches drawn from a reservoir: one keeps the logits that the network had
when the image was stored, one keeps the labels (its Eq. 6):

    loss = CE(y, h(x)) + alpha || z' - h(x') ||^2 + beta CE(y'', h(x'')).

Differs from the paper: the squares are averaged over all classes of the stream, as in the authors' code, whose head has all of
them from the start; alpha means the same in every task. The reservoir is brought up to date at the end of every epoch instead
of every step, with logits of the plain image, and drawn from with replacement; heads come with their tasks, so stored logits
cover the classes known then, are compared there alone, and count as equal for the classes beyond.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models import stage1
from models.registry import learner
from models.rehearsal.memory import Rehearsal, RehearsalSettings
from models.stage1 import Batch
from utils.data.data_manager import Batches
from utils.rng import numpy_generator, seed_of
from utils.run.monitor import Monitor


class DERppSettings(RehearsalSettings):
    """Weights of what is replayed."""

    derpp_alpha: float = Field(0.2, ge=0.0,
        description="DER++: weight of the stored logits (Buzzega et al. 2020, CIFAR-10, 500 images)")
    derpp_beta: float = Field(0.5, ge=0.0, description="DER++: weight of the stored labels (same source)")


@learner("derpp")
class DERpp(Rehearsal):
    Settings = DERppSettings
    title = "DER++"

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        device = self.fabric.device
        self.logits = torch.zeros(0, self.stream.num_classes, device=device)  # (M, all classes) when stored, 0 beyond `known`
        self.known = torch.zeros(0, dtype=torch.long, device=device)  # (M,) classes seen when stored

    @property
    def capacity(self) -> int:
        c = self.config
        return c.memory_per_class * self.stream.num_classes if c.fixed_memory else c.memory_size

    def training_indices(self, task: int) -> np.ndarray:
        return self.data.task_indices("train", task)

    def training_batches(self, task: int, epoch: int) -> Iterable[Batch]:
        """New images and labels; once the reservoir holds something also x', its places in the reservoir, x'' and y''.

        The next epoch's images are not known yet: the reservoir changes after this one.
        """
        new = self.epoch_batches(task, epoch)
        if not len(self.memory):
            return new
        dark, places = self.replayed(task, epoch, "logits")
        seen, _ = self.replayed(task, epoch, "labels")
        coming = iter(Batches.in_turn(new, dark, seen))
        steps = ((*batch, dark_images, where, *seen_batch) for batch, (dark_images, _), seen_batch, where
                 in zip(coming, coming, coming, places, strict=True))
        return stage1.Steps(steps, len(new))

    def replayed(self, task: int, epoch: int, what: str) -> tuple[Batches, list[Tensor]]:
        """An epoch's batches from the reservoir, images and labels; and of each its places in the reservoir.

        As many as the task has new images, so that both are cut alike into batches, processes and parts.
        """
        c = self.config
        size = self.data.count("train", task)
        drawn = numpy_generator(c.torch_seed, "derpp", what, task, epoch).integers(len(self.memory), size=size)
        seed = seed_of(c.torch_seed, "derpp order", what, task, epoch)
        batches = self.data.batches("train", indices=self.memory[drawn], batch_size=c.batch_size, augment=True, shuffle_seed=seed)
        slices = self.data.batch_members(drawn, batch_size=c.batch_size, shuffle_seed=seed)
        return batches, [torch.from_numpy(places) for places in slices]

    def training_loss(self, module: nn.Module, images: Tensor, labels: Tensor, *replayed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not replayed:  # nothing stored yet, or nothing of this batch for this process
            return super().training_loss(module, images, labels)
        dark, places, seen, seen_labels = replayed
        n, m = len(images), len(dark)
        logits = module(torch.cat([images, dark, seen]))  # one pass: (N + M + M, K)
        loss = derpp_loss(logits[:n], labels, logits[n:n + m], self.logits[places], self.known[places], logits[n + m:], seen_labels,
                          self.config.derpp_alpha, self.config.derpp_beta)
        return loss, logits[:n], labels

    def planned_images(self, task: int, new: float) -> float:
        return new if task == 0 else 3 * new  # new images, and as many for each of the two replayed terms

    def after_epoch(self, task: int, epoch: int) -> None:
        """Offer the epoch's images to the reservoir; those taken in come with the logits of now."""
        generator = numpy_generator(self.config.torch_seed, "reservoir", task, epoch)
        stream = generator.permutation(self.data.task_indices("train", task))
        counts = [self.data.count("train", t) for t in range(task + 1)]
        seen = self.config.epochs * sum(counts[:task]) + epoch * counts[task]
        slots = reservoir_slots(len(self.memory), self.capacity, seen, len(stream), generator)
        grown = max([len(self.memory), *(slot + 1 for slot in slots)])
        self.memory = np.pad(self.memory, (0, grown - len(self.memory)))
        self.logits, self.known = (F.pad(t, (0, 0) * (t.ndim - 1) + (0, grown - len(t))) for t in (self.logits, self.known))
        if not slots:
            return
        where = np.fromiter(slots, dtype=np.int64)
        self.memory[where] = stream[np.fromiter(slots.values(), dtype=np.int64)]
        with torch.no_grad():
            logits = self.net.classify(self.extract_images(self.memory[where])[0])  # (n, K)
        where_on_device = torch.from_numpy(where).to(logits.device)
        self.logits[where_on_device] = F.pad(logits, (0, self.stream.num_classes - logits.shape[1]))
        self.known[where_on_device] = logits.shape[1]

    def end_task(self, task: int, monitor: Monitor) -> None:
        """The reservoir was filled while training; nothing follows."""

    def forget_statistics(self, labels: Collection[int]) -> None:
        """Of the images that stay, the logits of these classes go too."""
        self.memory, kept = self.without(self.memory, labels)
        rows = torch.from_numpy(kept).to(self.logits.device)
        columns = [label for label in range(self.logits.shape[1]) if label not in labels]
        self.known = self.known[rows] - sum((self.known[rows] > label).to(self.known.dtype) for label in labels)
        self.logits = self.logits[rows][:, columns]

    def extra_state(self) -> dict[str, Tensor]:
        return {**super().extra_state(), "logits": self.logits, "known": self.known}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_extra_state(state)
        self.logits = F.pad(state["logits"], (0, self.stream.num_classes - state["logits"].shape[1]))  # a run that was extended has more
        self.known = state["known"]

    def epoch_state(self) -> dict[str, Tensor]:
        return self.extra_state()

    def load_epoch_state(self, state: Mapping[str, Tensor]) -> None:
        self.load_extra_state(state)

    def memory_bytes(self) -> dict[str, int]:
        return {**super().memory_bytes(), "statistics": self.logits.nbytes + self.known.nbytes}


def derpp_loss(logits: Tensor, labels: Tensor, dark_logits: Tensor, stored: Tensor, known: Tensor, replay_logits: Tensor,
               replay_labels: Tensor, alpha: float, beta: float) -> Tensor:
    """CE(y, h(x)) + alpha mean (z' - h(x'))^2 + beta CE(y'', h(x'')) (DER++ Eq. 6; mean over images and all C classes of the stream).

    Args:
        logits, dark_logits, replay_logits: h(x), h(x'), h(x'') of (N or M, K); labels, replay_labels: (N,) and (M,).
        stored: (M, C) z'; known: (M,) how many classes z' covers.
    """
    classes = dark_logits.shape[1]
    covered = torch.arange(classes, device=known.device) < known[:, None]  # (M, K)
    squares = (stored[:, :classes] - dark_logits).square() * covered
    dark = squares.sum(dim=1).mean() / stored.shape[1]
    return F.cross_entropy(logits, labels) + alpha * dark + beta * F.cross_entropy(replay_logits, replay_labels)


def reservoir_slots(filled: int, capacity: int, seen: int, arriving: int, generator: np.random.Generator) -> dict[int, int]:
    """Slot -> number of the arriving item that ends in it (Vitter, ACM TOMS 1985, algorithm R).

    Args:
        filled: slots in use; capacity: slots; seen: items offered before; arriving: items offered now.
    """
    draws = generator.integers(np.arange(seen + 1, seen + arriving + 1))  # item j may take any of the seen + j + 1 places
    slots: dict[int, int] = {}
    for item, draw in enumerate(draws.tolist()):
        if filled < capacity:
            slots[filled] = item
            filled += 1
        elif draw < capacity:
            slots[draw] = item
    return slots
