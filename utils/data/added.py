"""Tasks that came after a data set's own: images of new classes (`added` in a config), and what is still there of the older ones.

A run that extends another (`Learned`) needs no image of a class that is known already. Old test images serve to measure, where they
are found as they were; old training images serve methods that replay some of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from utils.config import AddedTask, Config
from utils.data.fingerprint import Fingerprint, changes, fingerprint
from utils.data.folders import check_classes, find_test_folder, read_class_folders, read_folders, without_tests
from utils.data.lists import read_lists
from utils.data.notes import some
from utils.data.npz import read_npz
from utils.data.paths import PathsBuilder
from utils.data.places import Sources, home_expanded
from utils.data.registry import load_dataset
from utils.data.stream import StoredData
from utils.data.types import ImageSet, Splits
from utils.errors import DataChanged, UserError

log = logging.getLogger("slca")

TRAIN_NAMES = ("train", "training")  # a folder of such a name tells no domain's name


@dataclass(frozen=True)
class Learned:
    """What a run that extends another knows of it: its stream and image format, and what its images were."""

    data: StoredData
    fingerprint: Fingerprint
    extended: bool = True  # the last of the added tasks is new; else the run only changes what is known

    @property
    def period(self) -> int | None:
        """Domain scenario: the number of classes."""
        return self.data.stream.label_period

    def own_labels(self) -> dict[str, int]:
        """Own label by class name; in the domain scenario the class's number, by "class" and by "domain/class"."""
        labels = {name: label for label, name in enumerate(self.data.stream.names_by_own_label())}
        if self.period is None:
            return labels
        return {key: slot % self.period for name, slot in labels.items() for key in (name, name.partition("/")[2])}

    @classmethod
    def of(cls, meta: Mapping[str, Any], extended: bool = True) -> Learned:
        """From what a checkpoint holds beside tensors. Raises UserError."""
        try:
            return cls(StoredData.from_json(meta["data"]), meta["fingerprint"], extended)
        except (KeyError, TypeError):
            raise UserError("the checkpoint to go on from was written by another version of this program; go on with that version"
                            ) from None


@dataclass(frozen=True)
class Part:
    """Images of one place: the data set's own, or those of one added task."""

    train: ImageSet  # labels: own ones of the whole stream
    test: ImageSet
    names: list[str]  # of the classes that the place holds
    where: str  # for messages, and for the name of a cache
    first: int = 0  # own label of its first class, where none of them was learned before; domain scenario: 0

    def fingerprint(self) -> Fingerprint:
        """Of a place whose classes were not learned before."""
        train, test = (replace(images, labels=images.labels - self.first) for images in (self.train, self.test))
        return fingerprint(train, test, self.names)


def load_parts(config: Config, learned: Learned | None = None, *, old_images: bool = False) -> list[Part]:
    """The data set's own images, then those of every added task.

    Args:
        learned: the run that is extended by the last task; images of the others may be missing.
        old_images: take the training images of learned classes too, which must be there.

    Raises:
        UserError: images of the new task are missing or wrong, a class is known already, or `old_images` are missing.
    """
    if config.scenario == "domain":
        return _load_domains(config, learned, old_images)
    added = config.added or []
    loaders: list[tuple[str, Callable[[], Splits], Path | None]] = [
        (config.dataset_name, lambda: load_dataset(config.dataset, config.data_root), test_folder_of(config)),
        *((task.train, partial(load_added, task), _test_folder(task)) for task in added)]
    parts: list[Part] = []
    known = [] if learned is None else learned.data.stream.names_by_own_label()
    for number, (where, load, test_folder) in enumerate(loaders):
        if learned is not None and (number < len(added) or not learned.extended):
            parts.append(_old_part(where, load, test_folder, learned, old_images))
            continue
        train, test, names = load()
        again = [name for name in names if name in known]
        if again:
            raise UserError(f"{where}: {some(again)} {'is a class' if len(again) == 1 else 'are classes'} that the model knows already; "
                            "an added task holds new classes alone. Take them out, or refine known classes with --update")
        train, test = (replace(images, labels=images.labels + len(known)) for images in (train, test))
        parts.append(Part(train, test, names, where, len(known)))
        known = [*known, *names]
    return parts


def _load_domains(config: Config, learned: Learned | None, old_images: bool) -> list[Part]:
    """The same in the domain scenario: an added task is one domain more, and own labels number the classes within a domain."""
    added, parts = config.added or [], []
    classes = None if learned is None else [name.partition("/")[2] for name in learned.data.stream.class_names[:learned.period]]
    for number, task in enumerate([None, *added]):
        if task is None:
            where, load, test_folder = config.dataset_name, partial(load_dataset, config.dataset, config.data_root), test_folder_of(config)
        else:
            first = _domains_before(config, learned, parts)
            where, load, test_folder = task.train, partial(load_domain, task, classes, first + number - 1), None
        if learned is not None and (number < len(added) or not learned.extended):
            parts.append(_old_part(where, load, test_folder, learned, old_images))
            continue
        train, test, names = load()
        parts.append(Part(train, test, names, where))
        classes = classes or names
    return parts


def _domains_before(config: Config, learned: Learned | None, parts: Sequence[Part]) -> int:
    """Domains of the data set itself."""
    if learned is not None:
        return learned.data.stream.num_tasks - len(config.added or []) + learned.extended
    return int(parts[0].train.domains.max()) + 1


def load_domain(task: AddedTask, classes: Sequence[str], number: int) -> Splits:
    """The images of one domain more, the `number`-th, labelled by `classes`; names are "domain/class". Raises UserError."""
    train, test, names = load_added(task)
    place = Path(task.train)
    domain = place.parent.name if place.name in TRAIN_NAMES else place.stem
    foreign = [name for name in names if name not in classes]
    if foreign:
        raise UserError(f"{place}: {some(foreign)} {'is no class' if len(foreign) == 1 else 'are no classes'} of the run, whose domains "
                        f"all have the same ones; allowed: {some(list(classes))}")
    label_of = np.array([classes.index(name) for name in names])
    train, test = (replace(images, labels=label_of[images.labels], domains=np.full(len(images), number)) for images in (train, test))
    return train, test, [f"{domain}/{name}" for name in classes]


def load_added(task: AddedTask) -> Splits:
    """Training images, test images (none where the task names no place for them) and class names. Raises UserError."""
    place, test_place = home_expanded(task.train), None if task.test is None else home_expanded(task.test)
    if place.suffix == ".npz":
        train, test, names = read_npz(place)
        if test_place is not None:
            raise UserError(f"--test: {task.test} is not used, since {place} holds x_test itself; leave --test out")
    elif place.is_file():
        train, test, names = _that_occur(*read_lists(place, test_place, None, None))
    elif test_place is not None:
        train, test, names = read_folders(place, test_place)
    else:
        train, test, names = without_tests(*read_class_folders(place))
    return train.noted(*check_classes(train, test, names, str(place))), test, names


def _that_occur(train: ImageSet, test: ImageSet, names: list[str]) -> Splits:
    """The same without class numbers that no image has: an added list may number its classes after those of the data set."""
    present = np.unique(np.concatenate([train.labels, test.labels]))
    number = np.full(len(names), -1)
    number[present] = np.arange(len(present))
    return *(replace(images, labels=number[images.labels]) for images in (train, test)), [names[label] for label in present]


def test_folder_of(config: Config) -> Path | None:
    """The folder of test images of a data set whose training images lie in another one; None for other layouts."""
    spec = config.dataset
    if isinstance(spec, str) or spec.layout != "folders" or spec.split is not None:
        return None
    sources = Sources.of(spec)
    if sources.test is not None:
        return sources.test.path
    return None if sources.root is None else find_test_folder(sources.root.path)


def _test_folder(task: AddedTask) -> Path | None:
    """The folder of a task's test images; None where there are none, or a list names them."""
    if task.test is None:
        return None
    place = home_expanded(task.test)
    return None if place.is_file() else place


def _test_alone(folder: Path) -> Splits:
    """Test images whose training images may be gone. Raises UserError."""
    test, names = read_class_folders(folder)
    return test.subset(np.empty(0, dtype=np.int64)), test, names


def _old_part(where: str, load: Callable[[], Splits], test_folder: Path | None, learned: Learned, old_images: bool) -> Part:
    """What is still there of images that were learned; nothing of it, where they are others now. Raises DataChanged for `old_images`."""
    own_label = learned.own_labels()
    try:
        train, test, names = _test_alone(test_folder) if test_folder is not None and not old_images else load()
        now = fingerprint(train, test, names)
        compared = ("train", "test") if old_images else ("test",)
        found = [name for name in names if name in own_label]
        trouble = changes(*({split: {name: prints[split][name] for name in sorted(found) if name in prints.get(split, {})}
                             for split in compared} for prints in (learned.fingerprint, now)))
        reason = "; ".join(trouble) if trouble else "" if found else "it holds none of the classes learned"
    except UserError as error:
        reason = str(error)
    if reason:
        if old_images:
            raise DataChanged(f"this method trains on stored images of old classes again, but those of {where} are not there as they were: "
                              f"{reason}. Put them back, or extend a run of a method that keeps no images (python main.py list methods)")
        log.warning(f"old test images of {where} are not there as they were, so accuracies on them are not measured: {reason}")
        nothing = ImageSet(PathsBuilder().done(), np.empty(0, dtype=np.int64))
        return Part(nothing, nothing, [], where)
    if not old_images:
        train = train.subset(np.empty(0, dtype=np.int64))
    label_of = np.array([own_label.get(name, -1) for name in names])
    train, test = (_relabelled(images, label_of) for images in (train, test))
    return Part(train, test, found, where)


def missing_test_classes(learned: Learned, parts: list[Part]) -> set[str]:
    """Learned classes that had test images, of which none is at hand now."""
    there, had = {name for part in parts for name in part.names}, learned.fingerprint.get("test", {})
    # a data set's own domains are remembered together, by class
    kept_as = {name: name if name in had or learned.period is None else name.partition("/")[2] for name in learned.data.stream.class_names}
    return {name for name, key in kept_as.items() if key in had and key not in there}


def _relabelled(images: ImageSet, label_of: np.ndarray) -> ImageSet:
    """The images of classes with a label of 0 or more, under that label."""
    kept = images.subset(np.flatnonzero(label_of[images.labels] >= 0))
    return replace(kept, labels=label_of[kept.labels])
