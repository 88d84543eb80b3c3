"""Packages that only some users need: the groups of requirements-extra.txt.

    python -m utils.extras docs      print a group's requirements, one per line, for pip's --requirement
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from utils.errors import UserError
from utils.files import PROJECT

REQUIREMENTS = PROJECT / "requirements-extra.txt"
HEADING = "# group: "


def groups() -> dict[str, list[str]]:
    """Group name -> its requirements, as requirements-extra.txt lists them."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines():
        if line.startswith(HEADING):
            name = line.removeprefix(HEADING).split()[0]
            found[name] = []
        elif name and line and not line.startswith("#"):
            found[name].append(line)
    return found


def uses() -> dict[str, str]:
    """Group name -> what needs it, as its heading says in brackets."""
    headings = [line.removeprefix(HEADING) for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines() if line.startswith(HEADING)]
    return {heading.split()[0]: heading.partition("(")[2].rstrip(")") for heading in headings}


def extra(module: str, group: str, needed_for: str) -> ModuleType:
    """Import `module`, which belongs to `group`.

    Raises:
        UserError: it, or something that it needs, is not installed; the message gives the command.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        packages = " ".join(f'"{requirement}"' for requirement in groups()[group])
        raise UserError(f"{needed_for} needs a package that is not installed ({error}); install the group {group!r} of "
                        f"requirements-extra.txt: pip install {packages}") from error


if __name__ == "__main__":
    print("\n".join(groups()[sys.argv[1]]))
