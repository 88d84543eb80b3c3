"""Which training images a protocol takes: few of each later class, or fewer the further down a long tail.

The protocols are settings of their own (utils/protocol_settings.py); how classes and images of a blurry stream are dealt to tasks is in
utils/data/blurry.py. What is drawn depends on the seed, the data set and the protocol alone, so all methods see the same images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from utils.config import Config
from utils.data.index_files import listed_images
from utils.data.notes import some
from utils.data.stream import TaskStream
from utils.data.types import ImageSet, members_by_group
from utils.errors import UserError
from utils.rng import numpy_generator

PROTOCOLS = ("few_shot", "long_tail", "blurry")
DOMAIN_REASON = {"few_shot": "every task has the same classes, so none is new after the first task",
                 "long_tail": "every task has the same classes, in no order that could have a tail",
                 "blurry": "every task has the same classes, so there is no boundary between classes"}


def protocol_of(config: Config) -> str:
    """Which of PROTOCOLS the config asks for; "" for plain tasks. Raises UserError for several."""
    found = [key for key in PROTOCOLS if getattr(config, key) is not None]
    if len(found) > 1:
        raise UserError(f"{' and '.join(found)} exclude each other: each says which training images there are; leave all but one out")
    return found[0] if found else ""


def check_protocol(config: Config) -> None:
    """Raises UserError for settings that mean nothing together."""
    protocol = protocol_of(config)
    if config.domains_per_task is not None and config.scenario != "domain":
        raise UserError("domains_per_task: belongs to scenario 'domain'; with scenario 'class' every task has the images of all domains "
                        "of its classes already. Leave it out, or set scenario to 'domain'")
    if protocol and config.scenario == "domain":
        raise UserError(f"{protocol} and scenario 'domain' exclude each other: {DOMAIN_REASON[protocol]}")
    if protocol in ("few_shot", "blurry") and config.all_at_once:
        raise UserError(f"{protocol} and all_at_once exclude each other: {protocol} says what later tasks are, and there is one task. "
                        "Allowed: few_shot and blurry null, or a method that learns task by task")
    if protocol == "blurry":
        for key in ("tasks", "task_sizes"):
            if getattr(config, key) is not None:
                raise UserError(f"{key} and blurry exclude each other: blurry draws which classes are new in which task; leave {key} out "
                                "(blurry.tasks is the number of tasks)")
        if config.val_fraction:
            raise UserError(f"val_fraction: got {config.val_fraction:g} with blurry, allowed: 0, because a stream that is seen once "
                            "holds no images back")
        if config.epochs > 1:
            raise UserError(f"epochs: got {config.epochs} with blurry, allowed: 1 (or 0, where nothing trains), because every image of "
                            "the stream is seen once")


def taken_per_class(config: Config, seed: int, stream: TaskStream, counts: Sequence[int]) -> np.ndarray:
    """(K,) training images that the protocol takes of each new label; classes of `added` give all.

    Args:
        counts: (K,) training images that there are.

    Raises:
        UserError: a class has too few, or there is no task after the first.
    """
    counts = np.asarray(counts, dtype=np.int64)
    if config.few_shot is not None:
        return _few_shot_counts(config.few_shot.shots, stream, counts, planned_tasks(config, stream))
    if config.long_tail is not None:
        return _long_tail_counts(config, seed, counts, stream.classes_before(planned_tasks(config, stream)))
    return counts


def planned_tasks(config: Config, stream: TaskStream) -> int:
    """Tasks of the data set itself, without those of `added`."""
    return stream.num_tasks - len(config.added or [])


def planned_counts(config: Config, seed: int, stream: TaskStream, labels: np.ndarray) -> np.ndarray:
    """(K,) training images that each new label of the data set's own classes will give, for a dry run.

    Args:
        labels: (N,) int64 own labels of the training images.

    Raises:
        UserError: as `taken_per_class`.
    """
    counts = np.zeros(stream.num_classes, dtype=np.int64)
    own = stream.class_order[:stream.classes_before(planned_tasks(config, stream))]
    counts[:len(own)] = np.bincount(labels, minlength=len(own))[own]
    return taken_per_class(config, seed, stream, counts)


def chosen_images(config: Config, seed: int, stream: TaskStream, images: ImageSet, labels: np.ndarray) -> np.ndarray:
    """(n,) int64 ascending: positions of the data set's training images that the protocol takes.

    Args:
        images: the data set's own training images, M of them; labels: (M,) their new labels.

    Raises:
        UserError: the data set has too few images, or an index file does not fit it.
    """
    if config.few_shot is None and config.long_tail is None:
        return np.arange(len(labels))
    counts = np.bincount(labels, minlength=stream.num_classes)
    taken = taken_per_class(config, seed, stream, counts)
    if config.few_shot is not None and config.few_shot.images is not None:
        return _listed(config.few_shot.images, config.few_shot.shots, stream, images, labels)
    name = protocol_of(config)
    drawn = [numpy_generator(name, seed, int(images.labels[found[0]])).permutation(found)[: taken[labels[found[0]]]]
             for found in members_by_group(labels)]  # by the own label: a class gives the same images wherever it comes
    return np.sort(np.concatenate(drawn))


def digest_of(*arrays: np.ndarray) -> str:
    """One word for which images were chosen, by which a resumed run knows that they are the same."""
    digest = hashlib.blake2b(digest_size=8)
    for array in arrays:
        digest.update(np.ascontiguousarray(array, dtype=np.int64).tobytes())
    return digest.hexdigest()


def _few_shot_counts(shots: int, stream: TaskStream, counts: np.ndarray, tasks: int) -> np.ndarray:
    if tasks < 2:
        raise UserError("few_shot: there is one task, allowed: two or more, because few images are given of the classes after the first "
                        "task")
    later = range(stream.classes_upto(0), stream.classes_before(tasks))
    small = [c for c in later if counts[c] < shots]
    if small:
        names = [stream.class_names[c] if stream.class_names else c for c in small]
        raise UserError(f"few_shot.shots: got {shots}, allowed: 1 to {counts[later].min()}, because that many training images there are of "
                        f"{some(names)}")
    taken = counts.copy()
    taken[later] = shots
    return taken


def _long_tail_counts(config: Config, seed: int, counts: np.ndarray, classes: int) -> np.ndarray:
    """floor(n_max * ratio^(-c / (C - 1))) of each of `classes` classes, at least 1, at most what there is."""
    tail = config.long_tail
    assert tail is not None, "asked for by the caller"
    sizes = tail_sizes(tail.most or int(counts[:classes].max(initial=0)), tail.ratio, classes)
    if tail.order == "shuffled":
        sizes = sizes[numpy_generator("long tail", seed).permutation(classes)]
    taken = counts.copy()
    taken[:classes] = np.minimum(sizes, counts[:classes])
    return taken


def tail_sizes(most: int, ratio: float, classes: int) -> np.ndarray:
    """(C,) int64: floor(n_max * rho^(-c / (C - 1))), at least 1; one class has n_max."""
    exponents = np.arange(classes) / max(classes - 1, 1)
    # the small share is for powers that should be whole and are a rounding error below
    return np.maximum(np.floor(most * ratio**-exponents * (1 + 1e-12)), 1).astype(np.int64)


def _listed(files: str | list[str], shots: int, stream: TaskStream, images: ImageSet, labels: np.ndarray) -> np.ndarray:
    """All images of the first task's classes, and of the others those in the index files, `shots` of each. Raises UserError."""
    listed = listed_images([files] if isinstance(files, str) else files, images)
    base = labels < stream.classes_upto(0)
    early = listed[base[listed]]
    if len(early):
        name = stream.class_names[labels[early[0]]]
        raise UserError(f"few_shot.images: {len(early)} of the listed images are of classes of the first task, such as {name!r}; allowed: "
                        "images of later classes (of the first task's all are taken). Leave out that task's list, and set shuffle to false "
                        "or class_order so that the classes come in the order that the lists are made for")
    found = np.bincount(labels[listed], minlength=stream.num_classes)
    wrong = [c for c in range(stream.classes_upto(0), stream.num_classes) if found[c] != shots and (labels == c).any()]
    if wrong:
        told = [f"{stream.class_names[c]!r} {found[c]}" for c in wrong]
        raise UserError(f"few_shot.images: allowed: {shots} images (shots) of every class after the first task; these have others: "
                        f"{some(told)}")
    return np.sort(np.concatenate([np.flatnonzero(base), listed]))
