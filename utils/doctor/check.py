"""One line of the doctor's report, and the report: text for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any, Literal

from utils.json_files import json_text

State = Literal["ok", "absent", "warning", "failed"]
STYLES: dict[State, str] = {"ok": "green", "absent": "dim", "warning": "yellow", "failed": "red"}


@dataclass(frozen=True)
class Check:
    """What was looked at and what became of it.

    Attributes:
        state: failed: something that every run needs does not work; warning: it works worse than it could; absent: only some need it.
        words: what was found and, unless it is fine, what to do.
        facts: the same for programs.
    """

    part: str  # heading
    name: str
    state: State
    words: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """A line to show: the label is coloured where the terminal can."""

    label: str
    text: str
    style: str


def lines(checks: Sequence[Check]) -> list[Line]:
    """The report for a terminal: a heading for each part, a line for each check."""
    found = []
    for part, members in groupby(checks, key=lambda check: check.part):
        found.append(Line(part, "", "bold"))
        for check in members:
            found.append(Line(f"  {check.state:8}", f"{check.name}: {check.words}", STYLES[check.state]))
    return found


def as_json(checks: Sequence[Check]) -> str:
    """{"ok": bool, "checks": [{"part", "name", "state", "words", "facts"}]}."""
    return json_text({"ok": works(checks), "checks": [asdict(check) for check in checks]})


def works(checks: Sequence[Check]) -> bool:
    """Whether all that every run needs is there."""
    return all(check.state != "failed" for check in checks)
