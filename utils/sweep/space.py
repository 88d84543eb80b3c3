"""Which values a sweep tries: `--set lr=[0.01,0.1]` are choices, `--set 'lr={"low":1e-4,"high":0.1,"log":true}'` is a range."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from utils.errors import UserError
from utils.overrides import parse_overrides

RANGE_KEYS = {"low", "high", "step", "log"}  # Optuna's words
Number = int | float


@dataclass(frozen=True)
class Choice:
    """Values of one setting that are tried as they are."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones where both are whole."""

    low: Number
    high: Number
    step: Number | None = None
    log: bool = False


Axis = Choice | Range


@dataclass(frozen=True)
class Space:
    """What `--set` says in a sweep: settings that are the same in every run, and those that are tried."""

    fixed: Mapping[str, Any]
    axes: Mapping[str, Axis]

    def ends(self) -> Iterator[dict[str, Any]]:
        """Every axis at each of its values (a range at both ends) while the others stay at their first, to check them early."""
        tried = {key: axis.values if isinstance(axis, Choice) else (axis.low, axis.high) for key, axis in self.axes.items()}
        first = {key: values[0] for key, values in tried.items()}
        yield first
        for key, values in tried.items():
            yield from ({**first, key: value} for value in values[1:])

    def grid(self) -> list[dict[str, Any]]:
        """Every combination, the last axis running fastest.

        Raises:
            UserError: an axis is a range, which has no end of values.
        """
        for key, axis in self.axes.items():
            if isinstance(axis, Range):
                raise UserError(f"--set {key}: a range has no values to go through one by one; list them, --set {key}=[{axis.low},"
                                f"{axis.high}], or let the sweep choose among them with --search N")
        choices = [axis.values for axis in self.axes.values() if isinstance(axis, Choice)]
        return [dict(zip(self.axes, values, strict=True)) for values in itertools.product(*choices)]


def parse_space(assignments: Sequence[str]) -> Space:
    """The `--set` words of a sweep. A list holds values to try, an object with "low" and "high" a range; all else is fixed.

    Raises:
        UserError: no key=value, an empty list, a value that is there twice, or a range that is none.
    """
    fixed: dict[str, Any] = {}
    axes: dict[str, Axis] = {}
    for key, value in parse_overrides(assignments).items():
        if key == "seed":
            raise UserError("--set seed: the seeds of a sweep are named with --seeds 0 1 2; every point runs with all of them")
        if isinstance(value, list):
            axes[key] = _choice(key, value)
        elif isinstance(value, dict) and {"low", "high"} <= value.keys():
            axes[key] = _range(key, value)
        else:
            fixed[key] = value
    return Space(fixed, axes)


def _choice(key: str, values: list[Any]) -> Choice:
    texts = [json.dumps(value, sort_keys=True) for value in values]
    if not values or len(set(texts)) < len(texts):
        raise UserError(f"--set {key}: got {json.dumps(values)}, allowed: one or more different values to try; a setting that is a list "
                        f"itself is tried as a list of lists, --set '{key}=[[1],[2]]'")
    return Choice(tuple(values))


def _range(key: str, words: dict[str, Any]) -> Range:
    low, high, step, log = words["low"], words["high"], words.get("step"), words.get("log", False)
    numbers = [low, high, *([] if step is None else [step])]
    problem = ""
    if words.keys() - RANGE_KEYS:
        problem = f"it has no {', '.join(sorted(words.keys() - RANGE_KEYS))}"
    elif not all(type(number) in (int, float) and math.isfinite(number) for number in numbers) or type(log) is not bool:
        problem = "low, high and step are finite numbers, log is true or false"
    elif not low < high or (step is not None and not 0 < step <= high - low):
        problem = "low is below high, and step is above 0 and at most their difference"
    elif log and (low <= 0 or step is not None):
        problem = "log needs a low above 0 and takes no step"
    if problem:
        raise UserError(f"--set {key}: got {json.dumps(words)}, which is no range: {problem}; as in "
                        f"--set '{key}={{\"low\": 0.001, \"high\": 0.1, \"log\": true}}'")
    return Range(low, high, step, log)
