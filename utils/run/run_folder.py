"""The folder of one run: <out>/<experiment>/<date-time>/, its status, and which one to continue."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from utils.config import Config
from utils.errors import UserError
from utils.files import refuse_links, storage_errors_told, write_atomic
from utils.json_files import json_text
from utils.machine.environment import environment
from utils.run.locks import folder_lock
from utils.run.runs import command_line, next_number, read_status, runs_in

log = logging.getLogger("slca")

# Settings that change where or how fast a run computes, not what; a resumed run may change them.
NEUTRAL_KEYS = frozenset({"num_workers", "device", "notes", "prefix", "model_postfix", "data_root", "cache", "save_before_ca", "ca_eval",
                          "test_batch_size", "keep_checkpoints", "checkpoint_every", "checkpoint_minutes", "resume", "accumulate",
                          "grad_checkpointing", "analyze", "tensorboard", "wandb", "feature_cache", "feature_cache_gb"})


@dataclass(frozen=True)
class RunFolder:
    """A run's folder; run.json in it holds the resolved config, versions and whether the run has finished."""

    path: Path
    new: bool = False  # made by this process

    @classmethod
    def open(cls, out_dir: Path, name: str, config: Config, *, resume: bool, device: torch.device | None = None,
             parent: Mapping[str, Any] | None = None) -> RunFolder:
        """The run to continue when resuming, else a new one, <out_dir>/<name>/<date-time>/.

        Resuming takes the newest run with this config: continued when unfinished, given back as it is when finished. Without
        one, an unfinished newest run is refused rather than mixed with another config; else a new run starts.

        Args:
            parent: what the run goes on from, as `Parent.to_json` tells it (utils/run/parent.py).

        Raises:
            UserError: the newest run is unfinished and has another config, or the folder cannot be made.
        """
        experiment = experiment_folder(out_dir, name)
        runs = cls.all(experiment) if resume else []
        for run in reversed(runs):
            if not run.changed_keys(config) and run.status().get("parent") == parent:
                return run
        if runs and not runs[-1].finished:
            runs[-1].check_same(config, "--resume")
        started = datetime.now().astimezone()
        stamp = started.strftime("%Y-%m-%d_%H-%M-%S")
        for suffix in ("", *(f"-{i}" for i in range(2, 1000))):
            path = experiment / (stamp + suffix)
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise UserError(f"--out: the folder {path} cannot be made ({error.strerror}); name another with --out DIR") from None
            run = cls(path, new=True)
            run._write({"finished": False, "number": next_number(experiment), "started": started.isoformat(timespec="seconds"),
                        "command": command_line(), "config": config.model_dump(mode="json"), "environment": environment(device),
                        "threads": torch.get_num_threads(), **({} if parent is None else {"parent": dict(parent)})})
            return run
        raise UserError(f"--out: too many runs named {stamp} in {experiment}")

    @classmethod
    def all(cls, experiment: Path) -> list[RunFolder]:
        """Runs of an experiment, oldest first."""
        return [cls(folder) for folder in runs_in(experiment)]

    @classmethod
    def newest(cls, experiment: Path, config: Config | None = None) -> RunFolder:
        """The newest run, finished or not; with a config the newest of that. One that stopped before its first checkpoint is passed
        over where another has one. Raises UserError when there is no run.
        """
        runs = cls.all(experiment)
        if not runs:
            raise UserError(f"there is no run in {experiment}; train first, or name the folder with --out DIR")
        same = [run for run in runs if config is not None and not run.changed_keys(config)]
        if config is not None and not same:
            runs[-1].check_same(config, "--test_only")
        fitting = same or runs
        return next((run for run in reversed(fitting) if run.has_checkpoint), fitting[-1])

    @classmethod
    def named(cls, folder: Path) -> RunFolder:
        """The run in `folder`, or the newest one of an experiment, finished or not. Raises UserError: there is none."""
        return cls(folder) if (folder / "run.json").is_file() else cls.newest(folder)

    @classmethod
    def finished_run(cls, folder: Path) -> RunFolder:
        """The run in `folder`, or the newest finished one of an experiment. Raises UserError: there is none that is finished."""
        runs = [cls(folder)] if (folder / "run.json").is_file() else cls.all(folder)
        finished = [run for run in runs if run.finished]
        if not finished:
            raise UserError(f"{folder} holds no finished run; " + ("finish it first (its own command with --resume)" if runs else
                                                                   "name the folder of one, such as logs/slca_demo"))
        return finished[-1]

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out while this one writes; also tidies what a killed one left.

        Raises:
            UserError: the folder is taken, or a link in it leads elsewhere.
        """
        refuse_links(self.path)
        with folder_lock(self.path):
            for leftover in [*self.path.rglob(".*.tmp"), *self.path.rglob(".tmp*")]:  # our names, and those of safetensors
                with storage_errors_told(leftover):
                    leftover.unlink(missing_ok=True)
            threads = self.status().get("threads")
            if threads not in (None, torch.get_num_threads()):
                log.warning(f"this run was started with {threads} threads and continues with {torch.get_num_threads()}: sums are rounded "
                            f"differently, so it will not repeat bit for bit (set OMP_NUM_THREADS={threads})")
            yield

    def status(self) -> dict[str, Any]:
        """What run.json holds; nothing when it cannot be read."""
        return read_status(self.path)

    @property
    def finished(self) -> bool:
        return bool(self.status().get("finished"))

    @property
    def has_checkpoint(self) -> bool:
        """Whether a task of any seed was finished and kept."""
        return any(self.path.glob("seed*/checkpoints/task_*/checkpoint.json"))

    def finish(self) -> None:
        """Mark the run as complete: --resume has nothing more to do."""
        self._write({**self.status(), "finished": True})

    def discard(self) -> None:
        """Remove a folder in which nothing was computed yet, and its experiment's when that is empty."""
        if self.new:
            shutil.rmtree(self.path, ignore_errors=True)
            if not any(self.path.parent.iterdir()):
                self.path.parent.rmdir()

    def changed_keys(self, config: Config) -> list[str]:
        """Settings that would make `config` compute something else than this run."""
        before, now = self.status().get("config") or {}, config.model_dump(mode="json")
        return sorted(key for key in {*before, *now} - NEUTRAL_KEYS if before.get(key) != now.get(key))

    def check_same(self, config: Config, doing: str) -> None:
        """Raises UserError, naming the keys, when `config` computes something else than the run's own."""
        if not self.status():
            raise UserError(f"{doing}: {self.path / 'run.json'} is damaged, so this run cannot be told from others; remove the folder "
                            f"{self.path}, or leave {doing} out")
        changed = self.changed_keys(config)
        if changed:
            before, now = self.status().get("config") or {}, config.model_dump(mode="json")
            details = ", ".join(f"{key} (was {before.get(key)!r}, is {now.get(key)!r})" for key in changed[:5])
            raise UserError(f"{doing}: {self.path} was started with another config: {details}. Put the setting back, or start "
                            f"a new run without {doing}.")

    def _write(self, content: dict[str, Any]) -> None:
        with storage_errors_told(self.path / "run.json") as path:
            write_atomic(path, json_text(content))


def experiment_folder(out_dir: Path, name: str) -> Path:
    """<out_dir>/<name>; what a name could do beside naming (separators, a leading dot) is replaced, so it stays inside."""
    plain = re.sub(r"[^\w.+ -]", "_", name).lstrip(".")[:150].strip()
    return out_dir / (plain or "run")
