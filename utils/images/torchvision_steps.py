"""torchvision v2 transforms from a config: [[name, {arguments}], ...] -> one callable."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torchvision.transforms import InterpolationMode, v2

from utils.errors import UserError

# Python objects as arguments, or (Normalize) what the data set does by itself after the list.
_NOT_IN_A_CONFIG = {"Lambda", "Compose", "RandomApply", "RandomChoice", "RandomOrder", "Transform", "Normalize"}
STEPS = {name for name, value in vars(v2).items() if isinstance(value, type) and issubclass(value, v2.Transform)} - _NOT_IN_A_CONFIG


def build_steps(steps: list[Any]) -> v2.Compose:
    """The transforms that a config lists, in their order.

    Raises:
        UserError: a step is not [name, {arguments}], has an unknown name, or arguments that torchvision refuses.
    """
    if not steps:
        raise UserError("train_transform: got an empty list; write \"none\" for no augmentation")
    return v2.Compose([_build_step(step) for step in steps])


def _build_step(step: Any) -> v2.Transform:
    name, arguments = _name_and_arguments(step)
    if name not in STEPS:
        near = difflib.get_close_matches(name, STEPS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "see torchvision.transforms.v2 for the names"
        why = " (the data set's mean and std are applied after the list)" if name == "Normalize" else ""
        raise UserError(f"train_transform: {name!r} is not a transform that a config can use{why}; {hint}")
    try:
        return getattr(v2, name)(**{key: _from_json(key, value) for key, value in arguments.items()})
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"train_transform: {name} does not take {arguments!r}: {error}") from None


def _name_and_arguments(step: Any) -> tuple[str, dict[str, Any]]:
    """"name", ["name"] or ["name", {arguments}]."""
    parts = [step] if isinstance(step, str) else step
    if isinstance(parts, list) and len(parts) == 1:
        parts = [*parts, {}]
    if not (isinstance(parts, list) and len(parts) == 2 and isinstance(parts[0], str) and isinstance(parts[1], dict)):
        raise UserError(f"train_transform: got the step {step!r}, allowed: [name, {{arguments}}], e.g. "
                        '["RandomCrop", {"size": 32, "padding": 4}]')
    return parts[0], parts[1]


def _from_json(key: str, value: Any) -> Any:
    """What JSON cannot say: interpolation modes and types of numbers are written as their names."""
    if isinstance(value, str) and key == "interpolation":
        return InterpolationMode[value.upper()]
    return getattr(torch, value) if isinstance(value, str) and key == "dtype" else value
