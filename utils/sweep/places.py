"""Where jobs run: side by side on this machine, each with its own GPU or its share of cores, or in the queue of a Slurm cluster.

submitit starts them in both places, and asks Slurm to run a job again whose time is over.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from utils.errors import UserError
from utils.extras import extra
from utils.machine.cores import CORES, available_cores
from utils.sweep import job as job_module
from utils.sweep.job import CommandJob

DEFAULT_MINUTES = 12 * 60
ENDLESS_MINUTES = 10 * 365 * 24 * 60  # submitit wants a limit
MOST_REQUEUES = 100  # of one job; each is a time limit that was used up
SECONDS = 30         # that Slurm's commands may take
OWN_SLURM_OPTIONS = {"time": "--time", "gpus_per_node": "--gpus-per-run", "cpus_per_task": "--cpus-per-run"}


@dataclass(frozen=True)
class Place:
    """Where and how jobs run."""

    on: Literal["local", "slurm"]
    jobs: int                                   # at most so many at once
    gpus_per_run: int = 0
    cpus_per_run: int | None = None             # None: whatever is there
    minutes: int | None = None                  # of a job, before it is ended and goes on as a new one
    gpus: tuple[str, ...] = ()                  # of this machine, as CUDA_VISIBLE_DEVICES names them
    slurm: Mapping[str, Any] = field(default_factory=dict)  # further options of sbatch

    def environment(self, slot: int) -> dict[str, str]:
        """Variables of the job in place `slot`, counted from 0."""
        cores = {} if self.cpus_per_run is None else {CORES: str(self.cpus_per_run)}
        if self.on == "slurm":
            return cores
        first = slot * self.gpus_per_run
        own = [self.gpus[(first + n) % len(self.gpus)] for n in range(self.gpus_per_run)] if self.gpus else []
        return {**cores, "CUDA_VISIBLE_DEVICES": ",".join(own)}

    def device_words(self, device: Any, asked: str | None) -> list[str]:
        """`--device` for a run whose config says `device`: what was asked for, else the GPUs that the job was given."""
        if asked is not None:
            return ["--device", asked]
        if not self.gpus_per_run or computes_on_cpu(device):
            return []
        return ["--device", "auto" if self.gpus_per_run == 1 else ",".join(map(str, range(self.gpus_per_run)))]

    def start(self, name: str, command: CommandJob, folder: Path) -> dict[str, Any]:
        """Hand a job over; returns what finds it again: its number, where, and its log files without their ending.

        Raises:
            UserError: submitit is not installed, or Slurm refuses the job.
        """
        submitit = extra("submitit", "sweep", f"--on {self.on}")
        extra("cloudpickle", "sweep", f"--on {self.on}").register_pickle_by_value(job_module)  # jobs start in any folder
        kind = submitit.SlurmExecutor if self.on == "slurm" else submitit.LocalExecutor
        try:
            executor = kind(folder, max_num_timeout=MOST_REQUEUES)
            executor.update_parameters(**(self._slurm_options(name) if self.on == "slurm" else
                                          {"timeout_min": self.minutes or ENDLESS_MINUTES}))
            with _deaf_to_ctrl_c():
                started = executor.submit(command)
        except (ValueError, RuntimeError, subprocess.SubprocessError, OSError) as error:  # submitit's own words for what Slurm said
            raise UserError(f"--on {self.on}: the job {name} could not be started: {str(error).strip() or type(error).__name__}") from error
        log = str(started.paths.stdout).removesuffix(".out")
        return {"id": started.job_id, "on": self.on, "host": socket.gethostname(), "log": log}

    def _slurm_options(self, name: str) -> dict[str, Any]:
        options: dict[str, Any] = {"job_name": name, "time": self.minutes or DEFAULT_MINUTES}
        if self.gpus_per_run:
            options["gpus_per_node"] = self.gpus_per_run
        if self.cpus_per_run:  # srun does not take the number over from sbatch
            options |= {"cpus_per_task": self.cpus_per_run, "srun_args": [f"--cpus-per-task={self.cpus_per_run}"]}
        return {**options, **({"additional_parameters": dict(self.slurm)} if self.slurm else {})}


def local_place(jobs: int | None, gpus_per_run: int | None, cpus_per_run: int | None, minutes: int | None, *, uses_gpus: bool,
                runs: int) -> Place:
    """This machine: a run for each GPU (or for each `gpus_per_run` of them), without GPUs one for each core.

    Args:
        uses_gpus: False where every run is on the CPU anyway; runs: how many there will be, at most so many go at once.

    Raises:
        UserError: more GPUs per run than there are.
    """
    gpus = visible_gpus() if uses_gpus and gpus_per_run != 0 else ()
    per_run = (gpus_per_run or 1) if gpus else 0
    if (gpus_per_run or 0) > len(gpus):
        raise UserError(f"--gpus-per-run: got {gpus_per_run}, but the runs of this sweep can use {len(gpus)} GPU(s) of this machine; "
                        "leave it out, or use --on slurm")
    cores = available_cores()
    side_by_side = min(jobs or (len(gpus) // per_run if gpus else cores), max(runs, 1))
    return Place("local", side_by_side, per_run, cpus_per_run or max(1, cores // side_by_side), minutes, gpus)


def slurm_place(jobs: int | None, gpus_per_run: int | None, cpus_per_run: int | None, minutes: int | None, options: Sequence[str], *,
                uses_gpus: bool) -> Place:
    """A Slurm cluster; without `jobs` all runs are handed over at once, each with a GPU unless every run is on the CPU anyway.

    Raises:
        UserError: this machine has no Slurm, or an option is no key=value.
    """
    if shutil.which("sbatch") is None:
        raise UserError("--on slurm: this machine has no sbatch; run the command on a login node of the cluster, or use --on local")
    return Place("slurm", jobs or 100_000, int(uses_gpus) if gpus_per_run is None else gpus_per_run, cpus_per_run, minutes,
                 slurm=slurm_options(options))


def computes_on_cpu(device: Any) -> bool:
    """Whether a config's `device` asks for the processor alone."""
    return {str(name).lower() for name in (device if isinstance(device, list) else [device])} <= {"cpu", "-1"}


def slurm_options(words: Sequence[str]) -> dict[str, str]:
    """`["partition=gpu", "mem=32G"]` -> options of sbatch. Raises UserError."""
    options = {}
    for word in words:
        key, equals, value = word.lstrip("-").partition("=")
        if not equals or not key:
            raise UserError(f"--slurm {word}: expected option=value of sbatch, e.g. --slurm partition=gpu account=vision mem=32G")
        known = OWN_SLURM_OPTIONS.get(key.replace("-", "_"))
        if known:
            raise UserError(f"--slurm {word}: this one has an option of its own, {known}")
        options[key] = value
    return options


def parse_minutes(text: str) -> int:
    """Slurm's ways to write a time -> minutes, rounded up: "90" (minutes), "12:00:00", "2-00:00:00".

    Raises:
        UserError: it is none of them, or is no time at all.
    """
    days, dash, rest = text.partition("-") if "-" in text else ("0", "", text)
    parts = rest.split(":")
    if not all(part.isdecimal() for part in [days, *parts]) or len(parts) > 3:
        raise UserError(f"--time: got {text!r}, expected minutes or hours:minutes:seconds, e.g. 90, 12:00:00 or 2-00:00:00 (two days)")
    numbers = [int(part) for part in parts]
    if dash:  # days-hours[:minutes[:seconds]]
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    else:     # minutes[:seconds], or hours:minutes:seconds
        hours, minutes, seconds = numbers if len(numbers) == 3 else [0, *numbers, 0][:3]
    total = int(days) * 86400 + hours * 3600 + minutes * 60 + seconds
    if not total:
        raise UserError(f"--time: got {text!r}, which is no time at all")
    return -(-total // 60)


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(name.strip() for name in named.split(",") if name.strip())
    import torch  # takes seconds
    return tuple(str(n) for n in range(torch.cuda.device_count()))


# Jobs that were started ----------------------------------------------------------------------------------------


def slurm_states() -> dict[str, str] | None:
    """Job number -> Slurm's word ("PENDING", "RUNNING") for all jobs of this user; None where Slurm does not answer."""
    command = ["squeue", "--noheader", "--format=%A %T", f"--user={getpass.getuser()}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if " " in line)


def local_job_lives(record: Mapping[str, Any]) -> bool:
    """Whether the process that watches over a local job is there."""
    if record["host"] != socket.gethostname():
        return False
    try:
        with suppress(ChildProcessError):  # another process started it
            os.waitpid(int(record["id"]), os.WNOHANG)  # or it would stay in the list of processes after its end
        os.kill(int(record["id"]), 0)
        return b"submitit" in Path(f"/proc/{record['id']}/cmdline").read_bytes()  # numbers are used again
    except FileNotFoundError:  # no /proc on this system
        return not Path("/proc").exists()
    except (OSError, ValueError):
        return False


def cancel(record: Mapping[str, Any]) -> None:
    """Ask a job to end in order; one that has ended already is left alone."""
    if record["on"] == "slurm":
        subprocess.run(["scancel", str(record["id"])], capture_output=True, timeout=SECONDS, check=False)
    elif local_job_lives(record):
        os.kill(int(record["id"]), signal.SIGTERM)


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """What is started inside does not hear Ctrl-C: whoever started it ends it, in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
