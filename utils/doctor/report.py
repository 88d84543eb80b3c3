"""`python main.py doctor`: every check, as lines or as JSON, and the exit code."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from utils.doctor.check import Check, as_json, lines
from utils.doctor.machine import machine_checks
from utils.doctor.packages import version_checks
from utils.errors import RunFailed
from utils.last_resort import one_sentence
from utils.terminal import show


def examine(arguments: Namespace, project_checks: Callable[[Namespace], list[Check]]) -> None:
    """Print the report.

    Args:
        project_checks: what needs packages; where one is missing, the error is a check that failed.

    Raises:
        RunFailed: something that every run needs does not work.
    """
    checks = [*version_checks(), *machine_checks(Path(os.path.expanduser(arguments.data_root)))]
    try:
        checks += project_checks(arguments)
    except ImportError as error:
        checks.append(Check("self-test", "start", "failed", one_sentence(error)))
    if arguments.json:
        show(as_json(checks))
    else:
        for line in lines(checks):
            show(line.text, label=line.label, style=line.style)
    failed = [f"{check.part} {check.name}" for check in checks if check.state == "failed"]
    if failed:
        raise RunFailed(f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}")
