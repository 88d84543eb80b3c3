"""The C library in front of the C library (calls.c): built once, loaded with LD_PRELOAD, armed in a child."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from enum import IntEnum
from pathlib import Path

SOURCE = Path(__file__).with_name("calls.c")
NAME = "soak_calls.so"


class How(IntEnum):
    """What becomes of the call (calls.c numbers them alike)."""

    COUNT = 0
    KILL_BEFORE = 1
    KILL_AFTER = 2
    KILL_HALF = 3  # a write gets half of its bytes out
    FAIL_ONCE = 4
    FAIL_ON = 5  # this call and all later ones; of a full disk those that need room, the first write getting half of its bytes out


def compiler() -> str | None:
    """The system's C compiler, where there is one that makes a library for LD_PRELOAD."""
    return shutil.which("cc") if sys.platform == "linux" else None


def build(folder: Path) -> Path:
    """Compile calls.c into `folder`; returns the library."""
    library = folder / NAME
    subprocess.run([str(compiler()), "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"], check=True)
    return library


def is_loaded() -> bool:
    return NAME in os.environ.get("LD_PRELOAD", "")


def arm(folder: Path, at: int, how: How, error: int, trace: Path) -> None:
    """From now on count this process's calls that change `folder`, a line each in `trace`; number `at`, from 1, meets `how`."""
    stream = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    ctypes.CDLL(None).arm(os.fsencode(folder.resolve()), ctypes.c_long(at), int(how), error, stream)
