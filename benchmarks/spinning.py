"""How long idle OpenMP threads should wait awake (GOMP_SPINCOUNT), alone and beside other work.

    python benchmarks/spinning.py --loops 0 1 2 16

Trains one epoch per task of the demo with two threads beside so many busy loops and prints the seconds of all epochs that were
done (at most five, one per task), for OpenMP's own setting, for OMP_WAIT_POLICY=PASSIVE and for several spin counts; main.py
sets the one in utils/machine/cores.py. A measurement ends after --limit seconds. What else runs on the machine counts as load:
it is printed too.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import PROJECT

from utils.run.metrics_file import METRICS, read_metrics

SETTINGS: dict[str, dict[str, str]] = {
    "default": {}, "passive": {"OMP_WAIT_POLICY": "PASSIVE"}, "10000": {"GOMP_SPINCOUNT": "10000"}, "3000": {"GOMP_SPINCOUNT": "3000"},
    "1000": {"GOMP_SPINCOUNT": "1000"}, "one thread": {"OMP_NUM_THREADS": "1"}}
TRAIN = """
import sys
from trainer import train
from utils.config import load_config
train(load_config("exps/slca_demo.json", {"seed": 0, "epochs": 1, "ca_epochs": 0, "keep_checkpoints": "none"}), sys.argv[1])
"""


def spin_for_ever() -> None:
    while True:
        pass


def epoch_seconds(setting: dict[str, str], limit: float) -> list[float]:
    """Seconds of each epoch of the demo that ended within `limit` seconds."""
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    with tempfile.TemporaryDirectory() as out:
        process = subprocess.Popen([sys.executable, "-c", TRAIN, out], cwd=PROJECT, env={**clean, "OMP_NUM_THREADS": "2", **setting},
                                   stdout=subprocess.DEVNULL)
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        records = [record for file in Path(out).rglob(METRICS) for record in read_metrics(file, warn=lambda message: None)]
    return [record["seconds"] for record in records if record["kind"] == "epoch"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loops", nargs="+", type=int, default=[0, 1, 2, 16], metavar="N", help="busy loops beside (default: 0 1 2 16)")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--limit", type=float, default=120, metavar="SECONDS", help="of one measurement, start included (default: 120)")
    arguments = parser.parse_args()
    print("| busy loops | setting | epochs done | seconds | load |\n|---:|---|---:|---:|---:|")
    for count in arguments.loops:
        loops = [multiprocessing.Process(target=spin_for_ever, daemon=True) for _ in range(count)]
        for loop in loops:
            loop.start()
        for name in arguments.settings:
            seconds = epoch_seconds(SETTINGS[name], arguments.limit)
            print(f"| {count} | {name} | {len(seconds)} | {sum(seconds):.1f} | {os.getloadavg()[0]:.1f} |", flush=True)
        for loop in loops:
            loop.terminate()


if __name__ == "__main__":
    main()
