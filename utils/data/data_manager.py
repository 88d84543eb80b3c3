"""The stream of tasks as batches: which images belong to which task and split, and who sees which image when.

Labels are new ones throughout (utils/data/stream.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.config import Config
from utils.data.added import Learned, Part, load_added, load_parts, missing_test_classes
from utils.data.fingerprint import Fingerprint, image_digests
from utils.data.folders import check_classes
from utils.data.notes import tell
from utils.data.places import home_expanded
from utils.data.registry import DatasetInfo, ImageSet, dataset_info
from utils.data.stream import InputFormat, StoredData, TaskStream
from utils.data.tasks import plan_tasks
from utils.data.types import members_by_group
from utils.errors import UserError
from utils.images.cache import open_files
from utils.images.loader import BatchMaker, BatchPool
from utils.images.passes import WorkItem
from utils.images.store import ArrayStore, FileStore, ImageStore, JoinedStore
from utils.images.transforms import SMALL, make_transform
from utils.machine.cores import available_cores
from utils.rng import numpy_generator

Tasks = int | Sequence[int]
MAX_WORKERS = 8  # "auto" takes no more processes than this


@dataclass(frozen=True)
class _Split:
    """The images of one split that take part, as positions in a store."""

    store: str  # "train" or "test"
    labels: np.ndarray  # (N,) int64 new labels of all images of the store
    members: np.ndarray  # (n,) int64 ascending: which of them belong to the split


@dataclass(frozen=True)
class _Images:
    """All images as they are on disk or in memory, of one place or of several (`added`); the same for every seed."""

    parts: list[Part]
    stores: dict[str, ImageStore]
    notes: tuple[str, ...] = ()  # what was passed over, reinterpreted or left out; told when it was found
    learned: Learned | None = None  # what is extended by the last part
    digests: dict[str, np.ndarray] = field(default_factory=dict)  # split -> (N, 16) of its images, once they were asked for

    def count(self, split: str) -> int:
        return sum(map(len, self._sets(split)))

    def labels(self, split: str) -> np.ndarray:
        """(N,) int64 own labels."""
        return np.concatenate([images.labels for images in self._sets(split)])

    def domains(self, split: str) -> np.ndarray | None:
        """(N,) int64; None for a set without domains."""
        return self._sets(split)[0].domains

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Of all parts; of learned classes, whose images may be gone, as it was."""
        before = {} if self.learned is None else self.learned.fingerprint
        new = self.parts if self.learned is None else self.parts[-1:] if self.learned.extended else []
        now = [part.fingerprint() for part in new]
        return {split: {name: entry for found in (before, *now) for name, entry in found.get(split, {}).items()}
                for split in ("train", "test")}

    @classmethod
    def open(cls, config: Config, world_size: int, learned: Learned | None, old_images: bool) -> _Images:
        """Load the images, decode and keep them as `cache` says, leave out unreadable ones if they may be."""
        parts, stores, notes = zip(*(_opened(part, config, world_size) for part in load_parts(config, learned, old_images=old_images)),
                                   strict=True)
        if len(parts) > 1:
            counts = {"train": [len(part.train) for part in parts], "test": [len(part.test) for part in parts]}
            stores = [{split: JoinedStore([opened[split] for opened in stores], counts[split]) for split in counts}]
        return cls(list(parts), stores[0], tuple(itertools.chain.from_iterable(notes)), learned)

    def _sets(self, split: str) -> list[ImageSet]:
        return [part.train if split == "train" else part.test for part in self.parts]


def _opened(part: Part, config: Config, world_size: int) -> tuple[Part, dict[str, ImageStore], list[str]]:
    """One place's images that can be read, their stores, and notes."""
    sets: list[ImageSet] = []
    stores: dict[str, ImageStore] = {}
    notes = list(part.train.notes)
    for split, images in (("train", part.train), ("test", part.test)):
        if isinstance(images.images, np.ndarray):
            stores[split] = ArrayStore(images.images)
        elif not len(images):
            stores[split] = FileStore(images.images)
        else:
            stores[split], kept = open_files(images.images, config.cache, name=f"{part.where} {split}", processes=world_size,
                                             folder=home_expanded(config.data_root) / "cache", skip_bad=config.bad_images == "skip")
            if len(kept) < len(images):
                notes.append(_left_out(images, kept, split))
                images = images.subset(kept)
        sets.append(images)
    train, test = sets
    later = validation_notes(config, train)
    if len(train) + len(test) < len(part.train) + len(part.test):
        later += check_classes(train, test, part.names, f"data set {part.where}")
    later = [note for note in later if note not in notes]
    return replace(part, train=train, test=test), stores, [*notes, *tell(f"data set {part.where}", later)]


def validation_notes(config: Config, train: ImageSet) -> list[str]:
    """A note about classes (of one domain, in that scenario) that are too small to give a validation image."""
    if not config.val_fraction:
        return []
    by_domain = config.scenario == "domain" and train.domains is not None
    groups = train.labels + (int(train.labels.max()) + 1) * train.domains if by_domain else train.labels
    sizes = np.unique(groups, return_counts=True)[1]
    single = int((sizes == 1).sum())
    if not single:
        return []
    nothing = "; there is no validation image at all, and validation accuracies will be null" if single == len(sizes) else ""
    return [f"{single} of {len(sizes)} classes have one training image, which is trained on, so they have no validation image{nothing}"]


def _left_out(images: ImageSet, kept: np.ndarray, split: str) -> str:
    """A note about unreadable images. Raises UserError if there are no others."""
    bad = np.setdiff1d(np.arange(len(images)), kept)
    told = f"{len(bad)} of {len(images)} images of the split {split!r} cannot be read"
    if not len(kept):
        raise UserError(f"{told}, the first is {images.images[0]}; no image is left, are these image files?")
    return f"{told} and are left out, the first is {images.images[int(bad[0])]}"


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
        self.info = dataset_info(config.dataset, config.data_root)
        if config.test_transform is not None:
            self.info = replace(self.info, test_transform=config.test_transform)
        if learned is not None:  # the images become input as before, whatever is known of the data set now
            before = learned.data.inputs
            self.info = replace(self.info, image_size=before.image_size, test_transform=before.test_transform)
            mean, std, channels = before.mean, before.std, before.channels
        images = share_images_of._images if share_images_of is not None else _Images.open(config, world_size, learned, old_images)
        self._images: _Images = images
        self.stream = _stream(config, seed, self.info, images.parts, learned)
        self.rank, self.world_size = rank, world_size
        # tasks whose test images were there when they were learned and are gone now
        self.unmeasured = _tasks_of(self.stream, missing_test_classes(learned, images.parts)) if learned is not None else set()

        labels = {split: self._new_labels(images.labels(split), images.domains(split)) for split in ("train", "test")}
        held_out = _validation_members(labels["train"], config.val_fraction, [len(part.train) for part in images.parts])
        self._splits = {
            "train": _Split("train", labels["train"], np.setdiff1d(np.arange(images.count("train")), held_out)),
            "val": _Split("train", labels["train"], held_out),
            "test": _Split("test", labels["test"], np.arange(images.count("test"))),
        }
        shared = share_images_of._pool if share_images_of is not None else None
        self._pool: BatchPool = shared or self._make_pool(config, mean, std, channels, device)

    @classmethod
    def plan(cls, config: Config, seed: int) -> TaskStream:
        """The stream of tasks from what is known without the data (a dry run). Raises UserError."""
        info = dataset_info(config.dataset, config.data_root)
        if info.num_classes is None:
            raise UserError(f"data set {info.name}: its number of classes is not known while the data is not there; place the data, "
                            'or add "num_classes" to the dataset object')
        stream = _plan(config, seed, info, info.num_classes, info.class_names)
        for task in config.added or []:
            stream = replace(stream.with_task(load_added(task)[2]), class_names=[])
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
    def notes(self) -> tuple[str, ...]:
        """What the reader passed over, reinterpreted or left out, a sentence each."""
        return self._images.notes

    # Images of tasks -----------------------------------------------------------------------------------------

    def count(self, split: str, tasks: Tasks) -> int:
        """Number of images of `tasks` in `split` ("train", "val" or "test"), over all processes."""
        return len(self.task_indices(split, tasks))

    def task_indices(self, split: str, tasks: Tasks) -> np.ndarray:
        """(n,) int64 positions of the images of `tasks` in the data set's own order; for `batches(indices=...)`."""
        chosen = self._splits[split]
        wanted = np.zeros(self.stream.num_tasks, dtype=bool)
        wanted[[tasks] if isinstance(tasks, (int, np.integer)) else list(tasks)] = True
        return chosen.members[wanted[self.stream.task_of_class[chosen.labels[chosen.members]]]]

    def labels(self, split: str, tasks: Tasks) -> np.ndarray:
        """(n,) int64 new labels, in the order in which `batches` without shuffling gives the images of all processes."""
        return self._splits[split].labels[self.task_indices(split, tasks)]

    def labels_of(self, split: str, indices: np.ndarray) -> np.ndarray:
        """(n,) int64 new labels of the images at `indices`, as `task_indices` numbers them."""
        return self._splits[split].labels[indices]

    def images_bytes(self, indices: np.ndarray) -> int:
        """Bytes that copies of these training images take: pixels of arrays, files as they are on disk."""
        return self._images.stores["train"].image_bytes(np.asarray(indices, dtype=np.int64))

    # What features of images are shared by -------------------------------------------------------------------

    def digests(self, split: str, indices: np.ndarray) -> np.ndarray:
        """(n, 16) uint8 what tells the images at `indices` from all others: a hash of their bytes. Raises UserError."""
        store = self._splits[split].store
        if store not in self._images.digests:
            sets = [part.train if store == "train" else part.test for part in self._images.parts]
            self._images.digests[store] = np.concatenate([image_digests(images) for images in sets])
        return self._images.digests[store][indices]

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
        assert domains is not None, f"data set {self.info.name} has domains but its images have none"
        task_of_domain = np.argsort(self.stream.domain_order)
        return labels + self.stream.label_period * task_of_domain[domains]

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


def _plan(config: Config, seed: int, info: DatasetInfo, num_classes: int, names: Sequence[str] | None) -> TaskStream:
    return plan_tasks(config, num_classes, seed, class_order=info.class_order, class_names=names,
                      num_domains=len(info.domains), fixed_domain_order=info.fixed_domain_order)


def _stream(config: Config, seed: int, info: DatasetInfo, parts: Sequence[Part], learned: Learned | None) -> TaskStream:
    """The data set's tasks, then one for each further place of images; or the stream that was learned, and one task more."""
    if learned is not None:
        return learned.data.stream.with_task(parts[-1].names) if learned.extended else learned.data.stream
    first, *added = parts
    if added and (config.scenario == "domain" or config.all_at_once):
        raise UserError("added: tasks of new classes follow a data set whose classes come task by task; allowed: null with scenario "
                        "'domain' and with all_at_once")
    plan = _plan(config, seed, info, len(first.names), first.names)
    stream = replace(plan, class_names=_names_in_order(plan, first.names, info.domains))
    for part in added:
        stream = stream.with_task(part.names)
    return stream


def _tasks_of(stream: TaskStream, names: set[str]) -> set[int]:
    return {int(stream.task_of_class[label]) for label, name in enumerate(stream.class_names) if name in names}


def _names_in_order(stream: TaskStream, names: Sequence[str], domains: Sequence[str]) -> list[str]:
    """Class names in learning order; in the domain scenario "domain/class"."""
    if stream.domain_order is None:
        return [names[c] for c in stream.class_order]
    return [f"{domains[d]}/{name}" for d in stream.domain_order for name in names]


def _validation_members(labels: np.ndarray, fraction: float, sizes: Sequence[int] = ()) -> np.ndarray:
    """Positions (n,) of `fraction` of each class's images, the same for every seed of the class order; ascending.

    A class of two or more images gives at least one and keeps at least one.

    Args:
        sizes: images of each place that they come from (default: one); what is held out of one does not depend on the others.
    """
    if not fraction or not len(labels):
        return np.empty(0, dtype=np.int64)
    found, starts = [], np.cumsum([0, *(sizes or [len(labels)])])
    for number, (start, stop) in enumerate(itertools.pairwise(starts)):
        place = ("added", number) if number else ()
        for members in members_by_group(labels[start:stop]):
            count = min(max(1, round(fraction * len(members))), len(members) - 1)
            # named by the first image, not by the label, which the class order changes
            found.append(start + numpy_generator("validation", *place, int(members[0])).permutation(members)[:count])
    return np.sort(np.concatenate(found))


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Mean or standard deviation for another number of channels: repeated for grey images, averaged for colour ones."""
    if len(values) == channels:
        return tuple(values)
    return tuple(values) * channels if len(values) == 1 else (sum(values) / len(values),) * channels
