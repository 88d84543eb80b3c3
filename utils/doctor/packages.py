"""Which packages are installed, and whether they are new enough: required ones, and the groups that only some users need.

Needs nothing but Python itself: it is asked where something is missing.
"""

from __future__ import annotations

import platform
import re
import sys
from importlib import metadata
from pathlib import Path

from utils.doctor.check import Check
from utils.extras import groups, uses
from utils.files import PROJECT
from utils.machine.environment import git_commit

PART = "versions"
LEAST_PYTHON = (3, 10)
REQUIREMENT = re.compile(r"([\w.-]+)\s*>=\s*([\d.]+)")  # the only form that the project's lists have


def version_checks(requirements: Path = PROJECT / "requirements.txt") -> list[Check]:
    """Python, the project's commit, every required package, then the groups of requirements-extra.txt."""
    commit = git_commit(PROJECT)
    found = [_python(), Check(PART, "project", "ok", commit or "no git checkout", {"git_commit": commit})]
    needs = REQUIREMENT.findall(requirements.read_text(encoding="utf-8"))
    return [*found, *(_required(*need) for need in needs), *(_group(name, listed) for name, listed in groups().items())]


def _python() -> Check:
    version = platform.python_version()
    new_enough = sys.version_info[:2] >= LEAST_PYTHON
    return Check(PART, "python", "ok" if new_enough else "failed", version + ("" if new_enough else "; install 3.10 or later"),
                 {"version": version})


def _required(name: str, least: str) -> Check:
    version = installed(name)
    facts = {"version": version, "least": least}
    if version is None:
        return Check(PART, name, "failed", f'not installed; pip install "{name}>={least}"', facts)
    if not at_least(version, least):
        return Check(PART, name, "failed", f'{version}, {least} or later is needed; pip install --upgrade "{name}>={least}"', facts)
    return Check(PART, name, "ok", version, facts)


def _group(name: str, listed: list[str]) -> Check:
    """A group of optional packages: absent unless all are there and new enough."""
    missing = [need for need in listed for package, least in REQUIREMENT.findall(need) if not _satisfied(package, least)]
    words = f"for {uses()[name] or name}"
    if missing:
        words += "; pip install " + " ".join(f'"{need}"' for need in missing)
    return Check(PART, f"group {name}", "absent" if missing else "ok", words, {"missing": missing})


def _satisfied(package: str, least: str) -> bool:
    version = installed(package)
    return version is not None and at_least(version, least)


def installed(package: str) -> str | None:
    """The version that is installed, None where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def at_least(version: str, least: str) -> bool:
    """Whether "2.9.1+cpu" is 2.9 or later, by the leading numbers."""
    found, wanted = ([int(part) for part in re.split(r"[^\d.]", text)[0].split(".") if part] for text in (version, least))
    return found >= wanted
