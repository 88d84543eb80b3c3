"""What planning across passes is worth: epochs that are made ahead, and replayed images beside new ones, both by worker processes.

    python benchmarks/epochs_ahead.py [--workers 2] [--images 256] [--rounds 3]

JPEG files at 224 px, decoded each time. A step is a sleep as long as the workers need for a batch: the work of a device that
is as fast as they are. The ways take turns in one process.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from common import save
from data_path import manager, write_photos

from utils.data.data_manager import Batches, DataManager

BATCH = 32
EPOCHS = 3  # in one turn; the first one starts cold

Times = list[tuple[float, float]]  # of each epoch: seconds to its first step, seconds


def epoch(data: DataManager, seed: int) -> Batches:
    return data.batches("train", 0, batch_size=BATCH, augment=True, shuffle_seed=seed)


def walk(epochs: Iterable[Iterable], step: float) -> Times:
    """Take the steps of each epoch, one after another."""
    times = []
    for steps in epochs:
        start, first = time.perf_counter(), None
        for _ in steps:
            first = first if first is not None else time.perf_counter() - start
            time.sleep(step)
        times.append((first or 0.0, time.perf_counter() - start))
    return times


def apart(data: DataManager, seed: int) -> Iterator[Iterable]:
    """Every epoch begins when the one before has ended."""
    for number in range(EPOCHS):
        yield epoch(data, seed + number)


def ahead(data: DataManager, seed: int) -> Iterator[Iterable]:
    """While an epoch ends the first batches of the next one are made."""
    for number in range(EPOCHS):
        last = number + 1 == EPOCHS
        yield epoch(data, seed + number).before(None if last else epoch(data, seed + number + 1))


def replayed_here(data: DataManager, here: DataManager, seed: int) -> Iterator[Iterable]:
    """A step has a batch of the workers' and two of the main process's own, as a pass inside another one would be without them."""
    for number in range(EPOCHS):
        seeds = [seed + number + 100 * part for part in range(3)]
        yield zip(epoch(data, seeds[0]), epoch(here, seeds[1]), epoch(here, seeds[2]), strict=True)


def replayed_by_workers(data: DataManager, seed: int) -> Iterator[Iterable]:
    """A step has three batches, all of the workers' (DER++)."""
    for number in range(EPOCHS):
        batches = iter(Batches.in_turn(*(epoch(data, seed + number + 100 * part) for part in range(3))))
        yield zip(batches, batches, batches, strict=True)


def compare(ways: dict[str, Callable[[int], Iterable[Iterable]]], step: float, rounds: int) -> dict:
    """Medians over the rounds: an epoch's seconds, and those to its first step; and the ratio. The first epoch of a turn is left out."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways)[:: 1 if number % 2 else -1]:
            later = walk(ways[name](1000 * (number + 1)), step)[1:]
            found[name].append((statistics.median(first for first, _ in later), statistics.mean(whole for _, whole in later)))
    slow, fast = ([whole for _, whole in found[name]] for name in ways)
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    seconds = {name: {"first_step": statistics.median(first for first, _ in times), "epoch": statistics.median(whole for _, whole in times)}
               for name, times in found.items()}
    for name, row in seconds.items():
        print(f"{name:44} first step after {row['first_step']:.3f} s of {row['epoch']:.2f} s", flush=True)
    return {"seconds": seconds, "faster": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios), "rounds": rounds}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_photos(Path(folder) / "photos", arguments.images)
        data, here = (manager(dataset, workers, "none") for workers in (arguments.workers, 0))
        walk([epoch(data, 0)], 0)  # start the workers, fill the caches of the system
        ((_, seconds),) = walk([epoch(data, 1)], 0)
        step = seconds / len(epoch(data, 0))
        print(f"{arguments.workers} workers, {len(epoch(data, 0))} batches of {BATCH} an epoch, a step of {step:.3f} s")
        epochs = compare({"epochs apart": lambda seed: apart(data, seed), "the next epoch ahead": lambda seed: ahead(data, seed)},
                         step, arguments.rounds)
        replay = compare({"replayed images in the main process": lambda seed: replayed_here(data, here, seed),
                          "replayed images by the workers": lambda seed: replayed_by_workers(data, seed)}, 3 * step, arguments.rounds)
    save("13_epochs_ahead", {"batch": BATCH, "images": arguments.images, "workers": arguments.workers, "step": step,
                             "lines": [epochs, replay]})


if __name__ == "__main__":
    main()
