"""What a result depends on besides its config: versions, the kind of machine, the project's git commit."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from utils.files import PROJECT

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "torchvision", "timm", "lightning-fabric", "numpy")
GIT_SECONDS = 10


def environment(device: torch.device | None = None) -> dict[str, str | None]:
    """Versions that a result depends on, the machine's kind and the project's git commit; no paths, no host name.

    Args:
        device: that the run uses; a GPU that is there and not used is not named.
    """
    import torch  # takes seconds, which --version need not wait for

    return {
        **versions(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu_name(),
        "gpu": torch.cuda.get_device_name(device) if torch.cuda.is_available() and (device is None or device.type == "cuda") else None,
    }


def versions() -> dict[str, str | None]:
    """Python, the packages that compute, and the project's git commit."""
    return {"python": platform.python_version(), **{package: _version(package) for package in PACKAGES}, "git_commit": git_commit(PROJECT)}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The processor's model, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:                                 # not Linux
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def git_commit(project: Path) -> str | None:
    """The commit of the checkout at `project`, "-dirty" added if tracked files were changed; None outside of one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(project), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=GIT_SECONDS).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != project.resolve():
            return None                             # a copy inside somebody else's checkout
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
