"""What measuring costs: the share of a run's processor time that goes into what every run measures beside training and extracting features.

    python benchmarks/measuring.py [--config exps/slca_demo.json] [--seed 0]

In one run, as it is: scoring the test features in every way that results.json has (accuracies, confusion, calibration), telling images of
classes still to come, and writing tables, pictures and page. The first holds the accuracies themselves, so the share is an upper bound.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import PROJECT

import trainer
from models import evaluation, load_experiment, session
from utils.terminal import quiet_terminal


class Clock:
    """Processor seconds of some functions, each without what the others take inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inside: list[float] = []  # seconds of the calls inside each call that is going on

    def of(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **settings: Any) -> Any:
            self._inside.append(0.0)
            begin = time.process_time()
            try:
                return function(*args, **settings)
            finally:
                whole, inside = time.process_time() - begin, self._inside.pop()
                self.seconds[name] = self.seconds.get(name, 0.0) + whole - inside
                if self._inside:
                    self._inside[-1] += whole
        return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=PROJECT / "exps" / "slca_demo.json")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    clock = Clock()
    evaluation.evaluate = clock.of("scores and figures of the test features", evaluation.evaluate)
    evaluation.extract_tasks = clock.of("extracting them", evaluation.extract_tasks)
    session.unknown_figures = clock.of("images of classes still to come", session.unknown_figures)
    trainer.write_report = clock.of("tables, pictures, page", trainer.write_report)
    train = clock.of("all else", trainer.train)
    with tempfile.TemporaryDirectory() as folder, quiet_terminal():
        train(load_experiment(arguments.config, {"seed": arguments.seed, "device": "cpu"}), Path(folder))
    whole = sum(clock.seconds.values())
    print("| what | processor time | share |\n|---|---:|---:|")
    for name, seconds in clock.seconds.items():
        print(f"| {name} | {seconds:.2f} s | {100 * seconds / whole:.1f} % |")


if __name__ == "__main__":
    main()
