"""The order of classes that a config gives, as a list or as a file: published orders, and those that `python main.py order` writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from utils.config import Config
from utils.data.places import find_place
from utils.errors import UserError
from utils.json_files import read_value

KEY = "class_order"

ClassOrder = Sequence["int | str"]


def given_order(config: Config, data_set_order: ClassOrder | None) -> ClassOrder | None:
    """The classes in order, by number or name; None where the config names no order.

    Args:
        data_set_order: `class_order` of the dataset object.

    Raises:
        UserError: two orders, an order where it means nothing, or a file that holds none.
    """
    given = config.class_order
    if given is None:
        return data_set_order
    _check_alone(config, data_set_order)
    return read_order(given) if isinstance(given, str) else given


def read_order(file: str) -> ClassOrder:
    """The order in a JSON file: a list of classes, or an object that has it as "class_order". Raises UserError."""
    place = find_place(file)
    if not place.path.is_file():
        problem = f"{place.path} is no regular file" if place.exists else place.missing
        raise UserError(f"{KEY}: {problem}; allowed: a JSON file with a list of all classes, by number or name (python main.py order "
                        "writes one)")
    content = read_value(place.path)
    order = content.get(KEY) if isinstance(content, dict) else content
    if not isinstance(order, list) or not order or any(isinstance(c, bool) or not isinstance(c, (int, str)) for c in order):
        raise UserError(f"{KEY}: {place.path} holds {_kind(content)}, allowed: a list of numbers or names of classes, or an object "
                        f'with such a list as "{KEY}"')
    return order


def _kind(content: Any) -> str:
    if isinstance(content, dict):
        return f'an object without a list of classes as "{KEY}" (its keys: {", ".join(list(content)[:5]) or "none"})'
    return "an empty list" if content == [] else "a list of other things" if isinstance(content, list) else f"a {type(content).__name__}"


def _check_alone(config: Config, data_set_order: ClassOrder | None) -> None:
    """Raises UserError where something else fixes the order, or seeds that it is to be measured over change nothing."""
    others = {"dataset.class_order": data_set_order is not None, "tasks": config.tasks is not None, "blurry": config.blurry is not None}
    found = [key for key, there in others.items() if there]
    if found:
        raise UserError(f"{KEY} and {found[0]} exclude each other: both say in which order classes come; leave one of them out")
    if config.scenario == "domain":
        raise UserError(f"{KEY} and scenario 'domain' exclude each other: every task has all classes, of other domains")
    drawn = config.long_tail is not None or (config.few_shot is not None and config.few_shot.images is None)
    if len(config.seeds) > 1 and not drawn:
        raise UserError(f"seed: got {config.seeds} with {KEY}, allowed: one seed, because a seed draws the order of the classes, which is "
                        "given here, so all runs would be the same one (torch_seed changes the rest)")
