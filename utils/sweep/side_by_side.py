"""`python main.py --config A B C --on local`: each config as a job, several at once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from utils.config import MethodSettings
from utils.extras import extra
from utils.run.locks import folder_lock
from utils.run.run_folder import experiment_folder
from utils.sweep.places import Place, computes_on_cpu, local_place, parse_minutes, slurm_place
from utils.sweep.plan import digest_of, free_name, plain
from utils.sweep.queue import Job, Queue, State, failures_told
from utils.terminal import show


def place_of(arguments: argparse.Namespace, configs: Sequence[MethodSettings], runs: int) -> Place:
    """Where the command line wants the runs of `configs`, `runs` in number. Raises UserError."""
    minutes = None if arguments.time is None else parse_minutes(arguments.time)
    extra("submitit", "sweep", f"--on {arguments.on}")
    devices = [arguments.device] if arguments.device is not None else [config.device for config in configs]
    uses_gpus = not all(map(computes_on_cpu, devices))
    size = arguments.jobs, arguments.gpus_per_run, arguments.cpus_per_run, minutes
    if arguments.on == "slurm":
        return slurm_place(*size, arguments.slurm, uses_gpus=uses_gpus)
    return local_place(*size, uses_gpus=uses_gpus, runs=runs)


def run_side_by_side(arguments: argparse.Namespace, configs: Sequence[tuple[Path, MethodSettings]]) -> None:
    """Every config as a job of its own, with its seeds one after another; returns when all have ended.

    Raises:
        UserError: a place that is not there; RunFailed: some of the runs failed.
    """
    place = place_of(arguments, [config for _, config in configs], len(configs))
    jobs: list[Job] = []
    for path, config in configs:
        name = free_name(plain(path.stem), {job.name for job in jobs})
        words = ["--config", str(path), *(["--set", *arguments.set] if arguments.set else []), "--out", str(arguments.out),
                 *place.device_words(config.device, arguments.device), *(["--resume"] if arguments.resume else []),
                 *(word for plugin in arguments.plugins for word in ("--plugin", plugin))]
        jobs.append(Job(name, tuple(words), experiment_folder(arguments.out, path.stem)))
    folder = arguments.out / "jobs" / digest_of([job.words for job in jobs])
    folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(folder):
        queue = Queue(folder, place)
        queue.plan(jobs)
        waiting, states = list(jobs), {}

        def ended(job: Job, state: State) -> None:
            states[job.name] = state

        queue.work(lambda: waiting.pop(0) if waiting else None, ended)
    failure = failures_told(arguments.out, states, len(jobs))
    if failure is not None:
        raise failure
    show(f"\nall of them in one table: python main.py compare {' '.join(str(job.experiment) for job in jobs)}")
