"""Faults and random settings, long: `make soak`; and the small sample of both that is a test.

    python -m tests.soak faults|configs [--seed N] [--count N] [--only N] [--jobs N] [--minutes M]
    python -m tests.soak sample

Every problem is printed with its number: --seed and --only show it again. Linux alone; faults need a C compiler (cc).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.soak import shim

SAMPLE_OF_FAULTS = (9, 206, 419, 420, 813)  # a new run's folder, checkpoints, other tensors, a second fault in the resumed run
SAMPLE_OF_CONFIGS = 6


def import_all() -> None:
    """What children would import; each of them has it when it is forked."""
    import trainer  # noqa: F401
    from models import learner_class
    from utils.methods import catalogue

    for name in catalogue().methods:
        learner_class(name)


def with_shim(folder: Path) -> int:
    """This program again, behind the library that counts its calls; returns its exit code."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LD_PRELOAD": str(shim.build(folder))}
    return os.spawnve(os.P_WAIT, sys.executable, [sys.executable, "-m", "tests.soak", *sys.argv[1:]], environment)


def run(arguments: argparse.Namespace, folder: Path) -> int:
    """What was asked for; returns the number of problems."""
    from tests.soak import configs, faults
    from tests.soak.children import stub_slow_parts

    import_all()
    sample, problems = arguments.what == "sample", 0
    only: Sequence[int] | None = None if arguments.only is None else [arguments.only]
    if arguments.what != "configs":
        if not shim.is_loaded():
            print("faults: skipped, they need Linux and a C compiler (cc)")
        else:
            undo = stub_slow_parts()
            problems += faults.soak(folder, lambda count: SAMPLE_OF_FAULTS if sample else only or spread(count, arguments.count),
                                    arguments.seed, arguments.jobs, arguments.minutes)
            undo()
    if arguments.what != "faults":
        numbers = range(1, 1 + SAMPLE_OF_CONFIGS) if sample else only or range(arguments.count)
        problems += configs.soak(folder, numbers, arguments.seed, arguments.jobs, arguments.minutes, shown=only is not None)
    return problems


def spread(count: int, wanted: int) -> Sequence[int]:
    """`wanted` of `count` numbers, evenly."""
    return sorted({number * count // wanted for number in range(min(count, wanted))}) if wanted < count else range(count)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["faults", "configs", "sample"])
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--count", type=int, default=2000, help="at most so many")
    parser.add_argument("--only", type=int, help="the number of one")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--minutes", type=float, default=30, help="stop after so many")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        if arguments.what != "configs" and not shim.is_loaded() and shim.compiler():
            return with_shim(Path(folder))
        return 1 if run(arguments, Path(folder)) else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
