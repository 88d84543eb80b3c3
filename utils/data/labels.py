"""Which class a config means by a number or a name, in `classes`, `tasks` and `class_order`."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from utils.data.notes import some, together
from utils.data.walk import same_spelling
from utils.errors import UserError


def are_numbers(names: Sequence[str]) -> bool:
    """Whether all class names are whole numbers, so that a number in the config means a name."""
    return bool(names) and all(name.isascii() and name.isdecimal() and len(name) < 19 for name in names)


def class_labels(given: Sequence[int | str], names: Sequence[str], key: str) -> list[int]:
    """The label of each class that `key` of a config lists.

    Text is a class's name, in whatever Unicode spelling. A number is a class's place, from 0, unless all names are whole
    numbers: then it is a name, 7 also "007". Places that do not exist are given back as they are.

    Raises:
        UserError: a name that no class has, or that several have, or a number that may be a name or a place.
    """
    by_name: dict[str | int, list[int]] = {}
    for label, name in enumerate(names):
        by_name.setdefault(same_spelling(name), []).append(label)
        if are_numbers([name]):
            by_name.setdefault(int(name), []).append(label)
    numbered = are_numbers(names)
    found, problems = [], []
    for wanted in given:
        labels = by_name.get(same_spelling(wanted) if isinstance(wanted, str) else wanted, [])
        if isinstance(wanted, str) and wanted in names:
            labels = [label for label in labels if names[label] == wanted] or labels
        if isinstance(wanted, int) and not numbered:
            if labels and labels != [wanted]:
                problems.append(_ambiguous(wanted, names))
            labels = [wanted]
        if not labels:
            problems.append(_unknown(wanted, names, numbered))
        elif len(labels) > 1:
            problems.append(f"{wanted!r} is the name of {len(labels)} classes, {some([names[label] for label in labels])} at the places "
                            f"{some(labels)}")
        found.append(labels[0] if labels else -1)
    if problems:
        raise UserError(f"{key}: {together(problems)}")
    return found


def number_note(names: Sequence[str]) -> list[str]:
    """A note if a number in the config means a class's name and not its place."""
    if not are_numbers(names) or all(int(name) == label for label, name in enumerate(names)):
        return []
    return [f"all class names are whole numbers, so a number in classes, tasks or class_order means the name; sorted as text they are "
            f"{some(names)}"]


def _ambiguous(wanted: int, names: Sequence[str]) -> str:
    place = f"the class at place {wanted}, {names[wanted]!r}" if 0 <= wanted < len(names) else f"a place, 0 to {len(names) - 1}"
    return f"{wanted} may be the class named {str(wanted)!r} or {place}; write the class's name in quotes"


def _unknown(wanted: int | str, names: Sequence[str], numbered: bool) -> str:
    near = difflib.get_close_matches(str(wanted), names, n=1)
    allowed = some(names) if numbered else f"0 to {len(names) - 1} or a class's name ({some(names)})"
    return f"{wanted!r} is no class of the data set, allowed: {allowed}" + (f"; did you mean {near[0]!r}?" if near else "")
