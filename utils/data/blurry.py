"""Blurry task boundaries, i-Blurry and Si-Blurry (Koh et al., ICLR 2022; Moon et al., ICCV 2023): which image comes in which task.

N percent of the classes are disjoint: all their images come in one task. Each other class has a task too, but M percent of its
images are put into one pool with those of the other blurry classes and dealt to all tasks. "Si" is stochastic: how many
classes and how many images of the pool a task gets is drawn; else all tasks get as many.

A class is new in the task in which its first image comes, so a task's images are of its own new classes and of known ones, never of
later ones. Checked with KHU-AGI/Si-Blurry, utils/online_sampler.py at 2bb41d5, which differs: its tasks may be without a disjoint
class (here each has one, so that each has a new class), it leaves out the classes that equal parts would not hold, and spreads the
first images of a task's blurry classes where here each class gives M percent of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from utils.data.types import members_by_group
from utils.errors import UserError
from utils.protocol_settings import Blurry
from utils.rng import numpy_generator


@dataclass(frozen=True)
class BlurryPlan:
    """C classes by their own label, N training images in the order that the plan was made for."""

    class_order: list[int]  # (C,) own labels, by the task in which they are new
    task_sizes: list[int]  # (T,) new classes of each task, all at least 1
    task_of_image: np.ndarray  # (N,) int64


def plan_blurry(settings: Blurry, labels: np.ndarray, order: list[int], seed: int) -> BlurryPlan:
    """Deal the images to tasks.

    Args:
        labels: (N,) int64 own label of each training image; how many each class has is all that the draws depend on.
        order: (C,) the classes as the seed shuffles them: the first N percent are disjoint.

    Raises:
        UserError: there are fewer disjoint classes than tasks.
    """
    disjoint = len(order) * settings.disjoint // 100
    if disjoint < settings.tasks:
        raise UserError(f"blurry.disjoint: got {settings.disjoint}, percent of {len(order)} classes, that is {disjoint}; allowed: at least "
                        f"one class for each of {settings.tasks} tasks, so that each has a new one. Raise disjoint or lower tasks")
    generator = numpy_generator("blurry", seed)
    home = np.empty(len(order), dtype=np.int64)  # (C,) the task that a class belongs to
    home[order[:disjoint]] = _task_of_each(disjoint, settings, generator, least=1)
    home[order[disjoint:]] = _task_of_each(len(order) - disjoint, settings, generator, least=0)
    task_of_image = home[labels]
    pool = _pool(labels, order[disjoint:], settings.blurry, generator)
    task_of_image[pool] = _task_of_each(len(pool), settings, generator, least=0)
    first = home.copy()  # (C,) the task in which a class is new; a class without images is new at home
    there = np.bincount(labels, minlength=len(order)) > 0
    first[there] = settings.tasks
    np.minimum.at(first, labels, task_of_image)
    by_task = sorted(order, key=first.__getitem__)  # stable: inside a task as the seed shuffled them
    return BlurryPlan(by_task, np.bincount(first, minlength=settings.tasks).tolist(), task_of_image)


def _task_of_each(count: int, settings: Blurry, generator: np.random.Generator, least: int) -> np.ndarray:
    """(count,) int64 ascending: `count` things cut into one part for each task, at drawn places or evenly.

    Args:
        least: things of the smallest part, where places are drawn; 0 or 1.
    """
    tasks = settings.tasks
    if not settings.stochastic:
        return np.repeat(np.arange(tasks), [len(part) for part in np.array_split(np.empty(count), tasks)])
    places = 1 + generator.choice(count - 1, tasks - 1, replace=False) if least else generator.integers(0, count + 1, tasks - 1)
    return np.searchsorted(np.sort(places), np.arange(count), side="right")


def _pool(labels: np.ndarray, classes: list[int], percent: int, generator: np.random.Generator) -> np.ndarray:
    """(P,) positions of `percent` of each class's images, rounded down, all shuffled together."""
    members = {int(labels[found[0]]): found for found in members_by_group(labels)}
    drawn = [generator.permutation(members[c])[: len(members[c]) * percent // 100] for c in classes if c in members]
    return generator.permutation(np.concatenate(drawn)) if drawn else np.empty(0, dtype=np.int64)
