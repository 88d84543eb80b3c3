"""Jobs of one folder: which there are, what became of each, and the loop that keeps as many going as there is room for.

    jobs.json             the jobs in their order, with the folder that each writes its runs to
    jobs/NAME.json        how a job that was started is found again
    jobs/NAME.exit        its exit code, once it has ended by itself
    submitit/             what the jobs print, and submitit's own files

All of it is on the disk, so a loop that was killed is begun again where it was: jobs that still run are waited for, others start.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import RunFailed, UserError
from utils.files import PROJECT, bytes_of_file, storage_errors_told, write_atomic
from utils.json_files import json_text
from utils.run.locks import is_locked
from utils.run.runs import runs_in
from utils.sweep.job import CommandJob
from utils.sweep.places import Place, cancel, local_job_lives, slurm_states
from utils.terminal import show, visible_name

LOOK_SECONDS = {"local": 1.0, "slurm": 10.0}  # between looks at the jobs
LAST_BYTES = 8192  # of a log, in which its last line is looked for
NOT_OURS = ("submitit ", "srun: ", "slurmstepd")  # lines that submitit and Slurm print
ENDED = ("done", "failed", "pruned")


@dataclass(frozen=True)
class Job:
    """One command of the project."""

    name: str                 # unique in its folder, a plain file name
    words: tuple[str, ...]    # of the command line, behind main.py
    experiment: Path          # where its runs are written

    def command(self, *, resumed: bool) -> list[str]:
        words = [*self.words, *(["--resume"] if resumed and "--resume" not in self.words else [])]
        return [sys.executable, str(PROJECT / "main.py"), *words]


@dataclass(frozen=True)
class State:
    """What became of a job."""

    word: str          # waiting, running, done, failed, pruned
    last: str = ""     # the last line of a failed one


class Queue:
    """The jobs of `folder`."""

    def __init__(self, folder: Path, place: Place | None = None) -> None:
        self.folder, self.place = folder, place
        self.jobs: list[Job] = []

    def plan(self, jobs: Sequence[Job]) -> None:
        """Add jobs, and tell so in jobs.json."""
        known = {job.name for job in self.jobs}
        self.jobs += [job for job in jobs if job.name not in known]
        listed = [{"name": job.name, "words": list(job.words), "experiment": str(job.experiment)} for job in self.jobs]
        with storage_errors_told(self.folder / "jobs.json") as file:
            write_atomic(file, json_text({"jobs": listed}))

    @classmethod
    def read(cls, folder: Path) -> Queue:
        """The queue that another process works on; empty where its file cannot be read."""
        queue = cls(folder)
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            listed = json.loads(bytes_of_file(folder / "jobs.json"))["jobs"]
            queue.jobs = [Job(str(job["name"]), tuple(job["words"]), Path(job["experiment"])) for job in listed]
        return queue

    # One job -----------------------------------------------------------------------------------------------------

    def start(self, job: Job, slot: int) -> None:
        """Hand a job over; what is left of an earlier try is forgotten. Raises UserError."""
        assert self.place is not None
        self._exit_file(job.name).unlink(missing_ok=True)
        command = CommandJob(job.command(resumed=False), job.command(resumed=True), str(Path.cwd()),
                             str(self._exit_file(job.name).absolute()), self.place.environment(slot))
        self._record_file(job.name).parent.mkdir(parents=True, exist_ok=True)
        self._remember(job.name, {**self.place.start(job.name, command, self.folder / "submitit"), "slot": slot})

    def prune(self, job: Job) -> None:
        """End a job that is not worth going on."""
        record = self.record(job.name)
        if record is not None:
            self._remember(job.name, {**record, "pruned": True})
            cancel(record)

    def record(self, name: str) -> dict[str, Any] | None:
        """How the job is found again; None where it was never started."""
        with suppress(OSError, ValueError, RecursionError):
            record = json.loads(bytes_of_file(self._record_file(name)))
            if isinstance(record, dict) and {"id", "on", "host", "log"} <= record.keys():
                return record
        return None

    def state(self, job: Job, in_slurm: Mapping[str, str] | None = None) -> State:
        """What became of `job`; `in_slurm` are the states of the user's jobs (`places.slurm_states`), None where they are not known."""
        record = self.record(job.name)
        code = self._exit_code(job.name)
        if code == 0:
            return State("done")
        alive = record is not None and code is None and self._alive(job, record, in_slurm)
        if record is not None and record.get("pruned"):
            return State("running" if alive else "pruned")
        if alive:
            pending = record["on"] == "slurm" and (in_slurm or {}).get(record["id"]) in ("PENDING", "REQUEUED")
            return State("waiting" if pending else "running")
        if record is None:
            return State("running" if _is_running(job.experiment) else "waiting")
        return State("failed", last_line(record["log"]) or "it was killed before it said a word")

    def _alive(self, job: Job, record: Mapping[str, Any], in_slurm: Mapping[str, str] | None) -> bool:
        if record["on"] == "slurm":
            return in_slurm is None or record["id"] in in_slurm
        return local_job_lives(record) or _is_running(job.experiment)

    def _remember(self, name: str, record: Mapping[str, Any]) -> None:
        with storage_errors_told(self._record_file(name)) as file:
            write_atomic(file, json_text(dict(record)))

    def _record_file(self, name: str) -> Path:
        return self.folder / "jobs" / f"{name}.json"

    def _exit_file(self, name: str) -> Path:
        return self.folder / "jobs" / f"{name}.exit"

    def _exit_code(self, name: str) -> int | None:
        with suppress(OSError, ValueError):
            return int(bytes_of_file(self._exit_file(name)))
        return None

    # All of them -------------------------------------------------------------------------------------------------

    def work(self, ask: Callable[[], Job | None], ended: Callable[[Job, State], None] = lambda job, state: None,
             watch: Callable[[Job], bool] = lambda job: False) -> None:
        """Keep as many jobs going as the place has room for, until `ask` has no more and all have ended.

        A stop (Ctrl-C, SIGTERM) ends local jobs in order; those of a cluster stay there, and are found by the next call.

        Args:
            ask: the next job, None when there is none at present and all that run decide; ended: told about each job that is over;
            watch: looks at a running job; True ends it.
        """
        assert self.place is not None
        going: dict[str, tuple[Job, int]] = {}
        doubted: set[str] = set()  # no sign of life at the last look
        pruned: set[str] = set()
        with self._ended_with_us(going):
            while True:
                while len(going) < self.place.jobs:
                    job = ask()
                    if job is None:
                        break
                    going[job.name] = job, self._begin(job, {slot for _, slot in going.values()})
                if not going:
                    return
                time.sleep(LOOK_SECONDS[self.place.on])
                in_slurm = slurm_states() if self.place.on == "slurm" else None
                for job, _ in list(going.values()):
                    state = self.state(job, in_slurm)
                    if state.word not in ENDED:
                        doubted.discard(job.name)
                        if state.word == "running" and job.name not in pruned and watch(job):
                            pruned.add(job.name)
                            self.prune(job)
                    elif job.name in doubted or self._exit_code(job.name) is not None:
                        del going[job.name]
                        show(f"{state.word}: {job.name}" + (f": {state.last}" if state.last else ""))
                        ended(job, state)
                    else:
                        doubted.add(job.name)  # its exit code may be on its way, on a file system of several machines

    def _begin(self, job: Job, taken: set[int]) -> int:
        """Start a job, or take over one that an earlier loop left running; returns its slot."""
        record = self.record(job.name)
        if record is not None and self._exit_code(job.name) is None:
            in_slurm = slurm_states() if record["on"] == "slurm" else None
            if self._alive(job, record, in_slurm):
                show(f"running already: {job.name}")
                return int(record.get("slot", 0))
        taken = taken | self._local_slots()
        free = next(slot for slot in range(len(taken) + 1) if slot not in taken)
        self.start(job, free)
        record = self.record(job.name) or {}
        show(f"started: {job.name} ({record.get('on')} job {record.get('id')})")
        return free

    def _local_slots(self) -> set[int]:
        """The slots of this machine's jobs that run, among them those that an earlier loop left and that are taken over only later."""
        going = [(job, self.record(job.name)) for job in self.jobs if self._exit_code(job.name) is None]
        return {int(record.get("slot", 0)) for job, record in going
                if record is not None and record["on"] == "local" and self._alive(job, record, None)}

    @contextmanager
    def _ended_with_us(self, going: Mapping[str, tuple[Job, int]]) -> Iterator[None]:
        try:
            yield
        except BaseException:
            records = [record for name in going if (record := self.record(name)) is not None]
            if self.place is not None and self.place.on == "slurm":
                if records:
                    show("the jobs stay in the queue of the cluster; the same command goes on watching them, to end them: "
                         f"scancel {' '.join(str(record['id']) for record in records)}", error=True)
                raise
            for record in records:
                cancel(record)
            for record in records:
                while local_job_lives(record):
                    time.sleep(0.1)
            raise


def _is_running(experiment: Path) -> bool:
    """Whether a process works on the newest run in `experiment`."""
    runs = runs_in(experiment)
    return bool(runs) and is_locked(runs[-1])


def last_line(log: str, endings: Sequence[str] = (".err", ".out")) -> str:
    """The last line of what a job printed on stderr, else on stdout, that is not submitit's own.

    Args:
        log: the files' path without their `endings`.
    """
    for ending in endings:
        with suppress(OSError):
            text = bytes_of_file(Path(log + ending))[-LAST_BYTES:].decode(errors="backslashreplace")
            lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(NOT_OURS)]
            if lines:
                return visible_name(lines[-1])
    return ""


def failures_told(folder: Path, states: Mapping[str, State], total: int) -> UserError | None:
    """What to raise when jobs failed; None when none did."""
    failed = [name for name, state in states.items() if state.word == "failed"]
    if not failed:
        return None
    return RunFailed(f"{len(failed)} of {total} runs failed: {', '.join(failed)} (the reasons: python main.py status "
                     f"{shlex.quote(str(folder))}); the others are done. The same command tries the failed ones again.")
