"""The stream of tasks as batches: which images belong to which task and split, and who sees which image when.

Labels are new ones throughout (utils/data/stream.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.config import Config
from utils.data.added import Learned, Part, load_added, missing_test_classes
from utils.data.fingerprint import Fingerprint
from utils.data.opened import OpenedImages
from utils.data.registry import DatasetInfo, dataset_info
from utils.data.splits import make_splits
from utils.data.stream import InputFormat, StoredData, TaskStream
from utils.data.tasks import plan_tasks
from utils.errors import UserError
from utils.images.loader import BatchMaker, BatchPool
from utils.images.passes import WorkItem
from utils.images.store import JoinedStore
from utils.images.transforms import SMALL, Images, make_transform
from utils.machine.cores import available_cores
from utils.rng import numpy_generator

Tasks = int | Sequence[int]
MAX_WORKERS = 8  # "auto" takes no more processes than this


class DataManager:
    """Tasks, labels and batches of one data set under one config and seed.

    Args:
        mean, std: per channel (one value: of all), when they replace the data set's
        channels: what the network takes, when that differs from the images' (grey is repeated, colour made grey)
        rank, world_size: this process among those that share the work
        device: where the network is, and where batches end up; a GPU also crops, flips and normalises (`augment_on`)
        share_images_of: a manager of the same config (another seed), whose images and worker processes are used again
        learned: the run that is extended by the last task of `added`; its images may be gone
        old_images: take the training images of learned classes too, which must be there

    Raises:
        UserError: the data set is missing or wrong, or the config asks for tasks that it cannot give.
    """

    def __init__(self, config: Config, seed: int, *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None,
                 channels: int | None = None, rank: int = 0, world_size: int = 1, device: torch.device | None = None,
                 share_images_of: DataManager | None = None, learned: Learned | None = None, old_images: bool = False) -> None:
        self.info = dataset_info(config.dataset)
        if config.test_transform is not None:
            as_tested = self.info.train_transform == self.info.test_transform  # nothing is augmented
            self.info = replace(self.info, test_transform=config.test_transform,
                                train_transform=config.test_transform if as_tested else self.info.train_transform)
        if learned is not None:  # the images become input as before, whatever is known of the data set now
            before = learned.data.inputs
            self.info = replace(self.info, image_size=before.image_size, test_transform=before.test_transform)
            mean, std, channels = before.mean, before.std, before.channels
        images = share_images_of._images if share_images_of is not None else OpenedImages.open(config, world_size, learned, old_images)
        self._images: OpenedImages = images
        self.stream = _stream(config, seed, self.info, images.parts, learned)
        self.rank, self.world_size = rank, world_size
        # tasks whose test images were there when they were learned and are gone now
        self.unmeasured = _tasks_of(self.stream, missing_test_classes(learned, images.parts)) if learned is not None else set()

        labels = {split: self._new_labels(images.labels(split), images.domains(split)) for split in ("train", "test")}
        self._splits, chosen = make_splits(config, seed, self.stream, images, labels)
        if learned is None:
            self.stream = replace(self.stream, chosen=chosen)
        shared = share_images_of._pool if share_images_of is not None else None
        self._pool: BatchPool = shared or self._make_pool(config, mean, std, channels, device)

    @classmethod
    def plan(cls, config: Config, seed: int, labels: np.ndarray | None = None) -> TaskStream:
        """The stream of tasks from what is known without the data (a dry run). Raises UserError.

        Args:
            labels: (N,) own labels of the training images, where they are known; default: of all classes as many, if their number is.
        """
        info = dataset_info(config.dataset)
        if info.num_classes is None:
            raise UserError(f"data set {info.name}: its number of classes is not known while the data is not there; place the data, "
                            'or add "num_classes" to the dataset object')
        stream = _plan(config, seed, info, info.num_classes, info.class_names, even_labels(info) if labels is None else labels)
        for task in config.added or []:
            names = load_added(task)[2] if stream.label_period is None else [""] * stream.label_period
            stream = replace(stream.with_task(names), class_names=[])
        return stream

    @property
    def stored(self) -> StoredData:
        """What a checkpoint keeps of the data."""
        test = self._pool.maker.transforms[False]  # the test transform
        return StoredData(self.stream, InputFormat(test.size, test.channels, test.mean.flatten().tolist(), test.std.flatten().tolist(),
                                                   self.info.test_transform))

    @property
    def fingerprint(self) -> Fingerprint:
        """What tells these images from others, for a resumed run."""
        return self._images.fingerprint

    @property
    def split(self) -> str:
        """Which images train and which test, in words; "" where nobody gave it a name."""
        return self._images.parts[0].train.split

    @property
    def notes(self) -> tuple[str, ...]:
        """What the reader passed over, reinterpreted or left out, a sentence each."""
        return self._images.notes

    # Images of tasks -----------------------------------------------------------------------------------------

    def count(self, split: str, tasks: Tasks) -> int:
        """Number of images of `tasks` in `split` ("train", "val", "test" or "again", see `make_splits`), over all processes."""
        return len(self.task_indices(split, tasks))

    def task_indices(self, split: str, tasks: Tasks) -> np.ndarray:
        """(n,) int64 positions of the images of `tasks` in the data set's own order; for `batches(indices=...)`."""
        chosen = self._splits[split]
        wanted = np.zeros(self.stream.num_tasks, dtype=bool)
        wanted[[tasks] if isinstance(tasks, (int, np.integer)) else list(tasks)] = True
        return chosen.members[wanted[chosen.tasks_of_members(self.stream)]]

    def labels(self, split: str, tasks: Tasks) -> np.ndarray:
        """(n,) int64 new labels, in the order in which `batches` without shuffling gives the images of all processes."""
        return self._splits[split].labels[self.task_indices(split, tasks)]

    def labels_of(self, split: str, indices: np.ndarray) -> np.ndarray:
        """(n,) int64 new labels of the images at `indices`, as `task_indices` numbers them."""
        return self._splits[split].labels[indices]

    def images_bytes(self, indices: np.ndarray) -> int:
        """Bytes that copies of these training images take: pixels of arrays, files as they are on disk."""
        return self._images.stores["train"].image_bytes(np.asarray(indices, dtype=np.int64))

    def pixels(self, split: str, indices: np.ndarray) -> Images:
        """The images at `indices` before any transform, uint8: (B, C, H, W), or a list of (C, H, W) where they differ in size."""
        return self._images.stores[self._splits[split].store].get(np.asarray(indices, dtype=np.int64))

    # What features of images are shared by -------------------------------------------------------------------

    def digests(self, split: str, indices: np.ndarray) -> np.ndarray:
        """(n, 16) uint8 what tells the images at `indices` from all others: a hash of their bytes. Raises UserError."""
        return self._images.digests(self._splits[split].store)[indices]

    @property
    def augments(self) -> bool:
        """Whether a training image is anything else than the same image under the test transform."""
        train, test = (self._pool.maker.transforms[augment] for augment in (True, False))
        return train.draws > 0 or train.recipe != test.recipe

    def input_recipe(self, split: str) -> dict[str, Any] | None:
        """All that makes a network's input of an image under the test transform, beside the image; JSON.

        None for images of several places, whose sizes are brought to one in another way where they meet in a batch.
        """
        test, store = self._pool.maker.transforms[False], self._images.stores[self._splits[split].store]
        if isinstance(store, JoinedStore):
            return None
        return {"transform": repr(test.recipe), "size": test.size, "mean": test.mean.flatten().tolist(), "std": test.std.flatten().tolist(),
                "decoded": type(store).__name__, "finished": "here" if self._pool.maker.finish_here else "on the device"}

    # Batches -------------------------------------------------------------------------------------------------

    def batches(self, split: str, tasks: Tasks | None = None, *, batch_size: int, augment: bool, shuffle_seed: int | None = None,
                indices: np.ndarray | None = None) -> Batches:
        """One pass over the images of `tasks`, or over those at `indices` (as `task_indices` numbers them).

        Args:
            batch_size: images per step over all processes; the last batch may be smaller
            augment: apply the training transform; else the test transform
            shuffle_seed: None keeps the data set's order; a number gives one permutation and one stream of augmentations

        Returns: an iterable with a length, of images (B, C, S, S) float32, normalised, and new labels (B,) int64.
            With several processes a pass that augments or shuffles cuts every batch into slices (a process's slice of a
            small last batch may be empty); a plain pass gives each process one contiguous part of the images. No image
            is repeated or left out.
        """
        if indices is None:
            assert tasks is not None, "name tasks or indices"
            indices = self.task_indices(split, tasks)
        indices = np.asarray(indices, dtype=np.int64)
        training = augment or shuffle_seed is not None
        if not training:
            indices = np.array_split(indices, self.world_size)[self.rank]
        chosen, items = self._splits[split], []
        for number, (whole, first, stop) in enumerate(self._cuts(indices, batch_size, shuffle_seed, sliced=training)):
            mine = whole[first:stop]
            stream = (shuffle_seed if shuffle_seed is not None else "fixed", "augment", number)
            items.append(WorkItem(chosen.store, mine, chosen.labels[mine], augment, stream, first, len(whole)))
        return Batches(self._pool, items)

    def batch_members(self, values: np.ndarray, *, batch_size: int, shuffle_seed: int) -> list[np.ndarray]:
        """What belongs to the images of each batch of this process when `batches(indices=...)` shuffles with that seed.

        Args:
            values: (n,) one value per image, in the order of the indices given to `batches`.
        """
        return [whole[first:stop] for whole, first, stop in self._cuts(values, batch_size, shuffle_seed, sliced=True)]

    def _cuts(self, values: np.ndarray, batch_size: int, shuffle_seed: int | None, *,
              sliced: bool) -> Iterator[tuple[np.ndarray, int, int]]:
        """Every whole batch with the part of it that is this process's own."""
        if shuffle_seed is not None:
            values = values[numpy_generator(shuffle_seed, "order").permutation(len(values))]
        for start in range(0, len(values), batch_size):
            whole = values[start:start + batch_size]
            first, stop = (len(whole) * r // self.world_size for r in (self.rank, self.rank + 1)) if sliced else (0, len(whole))
            yield whole, first, stop

    # Set-up --------------------------------------------------------------------------------------------------

    def _new_labels(self, labels: np.ndarray, domains: np.ndarray | None) -> np.ndarray:
        if self.stream.domain_order is None:
            return np.argsort(self.stream.class_order)[labels]
        if domains is None:
            assert not len(labels), f"data set {self.info.name} has domains but its images have none"
            return labels
        return labels + self.stream.label_period * self.stream.task_of_domain[domains]

    def _make_pool(self, config: Config, mean: Sequence[float] | None, std: Sequence[float] | None, channels: int | None,
                   device: torch.device | None) -> BatchPool:
        wanted = channels or (len(mean) if mean is not None else self.info.channels)
        mean, std = (_per_channel(given or own, wanted) for given, own in ((mean, self.info.mean), (std, self.info.std)))
        train = make_transform(self.info.train_transform, self.info.image_size, mean, std)
        test = make_transform(self.info.test_transform, self.info.image_size, mean, std)
        on_device = config.augment_on != "cpu" and device is not None and device.type != "cpu"
        maker = BatchMaker(self._images.stores, train, test, finish_here=not on_device)
        if config.num_workers != "auto":
            workers = config.num_workers
        elif all(store.in_memory for store in self._images.stores.values()) and (self.info.image_size <= SMALL or on_device):
            workers = 0
        else:
            workers = max(1, min(MAX_WORKERS, available_cores() // self.world_size))
        return BatchPool(maker, workers, device)


class Batches:
    """One pass; iterating again gives the same batches again."""

    def __init__(self, pool: BatchPool, items: list[WorkItem], then: Sequence[WorkItem] = ()) -> None:
        self._pool = pool
        self._items = items
        self._then = then

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._pool.run(self._items, self._then)

    def before(self, following: Iterable[Any] | None) -> Batches:
        """This pass, while whose last batches are computed on the first ones of `following` are made, if that is a pass over images."""
        return Batches(self._pool, self._items, following._items if isinstance(following, Batches) else ())

    @classmethod
    def joined(cls, passes: Iterable[Batches]) -> Batches:
        """One or more passes as one, one after another."""
        passes = list(passes)
        return cls(passes[0]._pool, [item for each in passes for item in each._items])

    @classmethod
    def in_turn(cls, *passes: Batches) -> Batches:
        """Passes of one length as one: the first batch of each, then the second of each."""
        return cls(passes[0]._pool, [item for step in zip(*(each._items for each in passes), strict=True) for item in step])


def even_labels(info: DatasetInfo) -> np.ndarray | None:
    """(N,) own labels as if all classes had as many training images; None where their number is not known."""
    return None if info.train_count is None or info.num_classes is None else np.arange(info.train_count) % info.num_classes


def _plan(config: Config, seed: int, info: DatasetInfo, num_classes: int, names: Sequence[str] | None,
          labels: np.ndarray | None) -> TaskStream:
    return plan_tasks(config, num_classes, seed, class_order=info.class_order, class_names=names,
                      num_domains=len(info.domains), fixed_domain_order=info.fixed_domain_order, labels=labels)


def _stream(config: Config, seed: int, info: DatasetInfo, parts: Sequence[Part], learned: Learned | None) -> TaskStream:
    """The data set's tasks, then one for each further place of images; or the stream that was learned, and one task more."""
    if learned is not None:
        return _with_task(learned.data.stream, parts[-1]) if learned.extended else learned.data.stream
    first, *added = parts
    if added and config.all_at_once:
        raise UserError("added: tasks follow a data set that is learned task by task; allowed: null with all_at_once")
    plan = _plan(config, seed, info, len(first.names), first.names, first.train.labels)
    stream = replace(plan, class_names=_names_in_order(plan, first.names, info.domains))
    for part in added:
        stream = _with_task(stream, part)
    return stream


def _with_task(stream: TaskStream, part: Part) -> TaskStream:
    """One task more; a new domain must have a new name. Raises UserError."""
    if stream.label_period is not None and stream.domains_per_task > 1:
        raise UserError(f"{part.where}: the run mixes {stream.domains_per_task} domains in a task, so that one domain is no task; allowed: "
                        "a run of one domain per task")
    if stream.label_period is not None and part.names[0] in stream.class_names:
        domain = part.names[0].partition("/")[0]
        raise UserError(f"{part.where}: {domain} is a domain that the model knows already; a domain is called after its folder, so name "
                        "that as the new domain")
    return stream.with_task(part.names)


def _tasks_of(stream: TaskStream, names: set[str]) -> set[int]:
    return {int(stream.task_of_class[label]) for label, name in enumerate(stream.class_names) if name in names}


def _names_in_order(stream: TaskStream, names: Sequence[str], domains: Sequence[str]) -> list[str]:
    """Class names in learning order; in the domain scenario "domain/class", "domain+domain/class" where a task mixes some."""
    if stream.domain_order is None:
        return [names[c] for c in stream.class_order]
    mixed = ("+".join(domains[d] for d in stream.domains_of(task)) for task in range(stream.num_tasks))
    return [f"{domain}/{name}" for domain in mixed for name in names]


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Mean or standard deviation for another number of channels: repeated for grey images, averaged for colour ones."""
    if len(values) == channels:
        return tuple(values)
    return tuple(values) * channels if len(values) == 1 else (sum(values) / len(values),) * channels
