"""From a config to the stream of tasks: which classes (or which domain) come in which order. Needs no image.

Class-incremental (as PyCIL has it): class order by the seed or a file, `init_cls` classes, then `increment`
until they run out; or blurry tasks, whose classes overlap. Domain-incremental: every task has the same C classes of another domain, or of
several; class c of task t has the slot c + t C, so each task has a head of its own and a prediction is the slot modulo C.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from utils.config import Config
from utils.data.blurry import plan_blurry
from utils.data.class_orders import given_order
from utils.data.labels import are_numbers, class_labels
from utils.data.notes import some
from utils.data.protocols import check_protocol
from utils.data.stream import TaskStream
from utils.errors import UserError


def class_permutation(num_classes: int, seed: int) -> list[int]:
    """The release's class order: np.random.seed(seed); np.random.permutation(num_classes)."""
    return np.random.RandomState(seed).permutation(num_classes).tolist()


def task_sizes(num_classes: int, init_cls: int, increment: int) -> list[int]:
    """`init_cls` classes, then `increment` each; the last task takes the rest.

    Raises:
        UserError: more classes are asked for than there are, or the later tasks would be empty.
    """
    if init_cls > num_classes:
        raise UserError(f"init_cls: got {init_cls}, allowed: 1 to {num_classes}, the number of classes of the data set")
    rest = num_classes - init_cls
    if rest and not increment:
        raise UserError(f"increment: got 0 with {rest} of {num_classes} classes left after init_cls = {init_cls}; "
                        f"set increment to at least 1, or init_cls to {num_classes} for a single task")
    sizes = [init_cls] + [increment] * (rest // increment if rest else 0)
    return sizes + ([rest % increment] if rest and rest % increment else [])


def plan_tasks(config: Config, num_classes: int, seed: int, *, class_order: Sequence[int | str] | None = None,
               class_names: Sequence[str] | None = None, num_domains: int = 0, fixed_domain_order: bool = False,
               labels: np.ndarray | None = None) -> TaskStream:
    """The stream that `config` and `seed` define on a data set; with `all_at_once` its classes as one task.

    Args:
        class_order: the data set's own order, which overrides shuffle and seed
        class_names: by own label; None in a dry run without the data
        num_domains: 0 for a data set without domains
        fixed_domain_order: the user listed the domains, so they are not shuffled
        labels: (N,) int64 own label of each training image, on which blurry tasks depend

    Raises:
        UserError: the config asks for tasks that this data set cannot give.
    """
    check_protocol(config)
    class_order = given_order(config, class_order)
    if config.blurry is not None:
        return _plan_blurry(config, num_classes, seed, class_order, class_names, labels)
    if config.all_at_once:
        return TaskStream(_class_order(config, num_classes, seed, class_order, class_names), [num_classes])
    if config.scenario == "domain":
        return _plan_domains(config, num_classes, seed, num_domains, fixed_domain_order)
    if config.tasks is not None:
        return _plan_listed(config.tasks, num_classes, class_names)
    order = _class_order(config, num_classes, seed, class_order, class_names)
    if config.task_sizes is not None:
        if sum(config.task_sizes) != num_classes:
            raise UserError(f"task_sizes: got {config.task_sizes} with the sum {sum(config.task_sizes)}, allowed: sizes whose "
                            f"sum is {num_classes}, the number of classes of the data set")
        return TaskStream(order, list(config.task_sizes))
    if config.init_cls is None or config.increment is None:
        missing = "init_cls" if config.init_cls is None else "increment"
        raise UserError(f"key '{missing}' is missing; name init_cls and increment, or task_sizes, or tasks")
    return TaskStream(order, task_sizes(num_classes, config.init_cls, config.increment))


def _plan_domains(config: Config, num_classes: int, seed: int, num_domains: int, fixed_order: bool) -> TaskStream:
    if not num_domains:
        raise UserError(f"scenario: got 'domain', but the data set {config.dataset_name} has no domains; use one that has "
                        "(domainnet, synthetic with num_domains, or an object with \"layout\": \"domains\")")
    for key in ("tasks", "task_sizes"):
        if getattr(config, key) is not None:
            raise UserError(f"{key} and scenario 'domain' exclude each other: every task has all classes of one domain")
    shuffled = config.shuffle and not fixed_order
    order = class_permutation(num_domains, seed) if shuffled else list(range(num_domains))
    per_task = config.domains_per_task or 1
    if per_task > num_domains:
        raise UserError(f"domains_per_task: got {per_task}, allowed: 1 to {num_domains}, the number of domains of the data set")
    tasks = -(-num_domains // per_task)
    return TaskStream(list(range(num_classes * tasks)), [num_classes] * tasks, label_period=num_classes, domain_order=order,
                      domains_per_task=per_task)


def _plan_blurry(config: Config, num_classes: int, seed: int, class_order: Sequence[int | str] | None, class_names: Sequence[str] | None,
                 labels: np.ndarray | None) -> TaskStream:
    """Each class in the task in which its first image comes."""
    if class_order is not None:
        raise UserError("dataset.class_order and blurry exclude each other: blurry draws the order of the classes; leave one out")
    if labels is None:
        raise UserError("blurry: which class comes in which task depends on the images, and how many there are is not known while the data "
                        "are not there; place the data set")
    assert config.blurry is not None, "asked for by the caller"
    plan = plan_blurry(config.blurry, labels, order_by_seed(config, num_classes, seed), seed)
    return TaskStream(plan.class_order, plan.task_sizes)


def order_by_seed(config: Config, num_classes: int, seed: int) -> list[int]:
    """The classes as the seed shuffles them, or in the data set's own order where the config does not shuffle."""
    return class_permutation(num_classes, seed) if config.shuffle else list(range(num_classes))


def _class_order(config: Config, num_classes: int, seed: int, given: Sequence[int | str] | None,
                 class_names: Sequence[str] | None) -> list[int]:
    """The given order, else that of the seed. Raises UserError for a given one without each class once."""
    return order_by_seed(config, num_classes, seed) if given is None else _checked_order(given, num_classes, class_names)


def _plan_listed(tasks: list[list[int | str]], num_classes: int, class_names: Sequence[str] | None) -> TaskStream:
    """Tasks that the user listed class by class."""
    sizes = [len(task) for task in tasks]
    if not sizes or 0 in sizes:
        raise UserError("tasks: got a list with an empty task, allowed: at least one class in every task")
    return TaskStream(_checked_order([c for task in tasks for c in task], num_classes, class_names, key="tasks"), sizes)


def _checked_order(given: Sequence[int | str], num_classes: int, class_names: Sequence[str] | None, key: str = "class_order") -> list[int]:
    """The listed classes as labels, each exactly once; without names (dry run) named classes are numbered as they come."""
    if class_names is not None:
        order = class_labels(given, class_names, key)
    elif any(isinstance(c, str) for c in given):
        number = {c: i for i, c in enumerate(dict.fromkeys(given))}
        order = [number[c] for c in given]
    else:
        order = [int(c) for c in given]
    counts = Counter(order)
    found = {"twice": sorted(c for c, count in counts.items() if count > 1), "missing": sorted(set(range(num_classes)) - set(order)),
             "unknown": sorted(set(order) - set(range(num_classes)))}
    if any(found.values()):
        named = class_names if class_names is not None and are_numbers(class_names) else None
        problems = [f"{word} {some([named[c] if named and 0 <= c < num_classes else c for c in classes])}"
                    for word, classes in found.items() if classes]
        allowed = f"each class ({some(named)})" if named else f"each class 0 to {num_classes - 1}"
        raise UserError(f"{key}: {'; '.join(problems)}; allowed: {allowed} exactly once "
                        "(to use only some classes, list them under \"classes\" of the dataset object)")
    return order
