"""The folder of one run: <out>/<experiment>/<date-time>/, its status, and which one to continue."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from utils.config import Config
from utils.environment import environment
from utils.errors import UserError
from utils.files import write_atomic

# Settings that change where or how fast a run computes, not what; a resumed run may change them.
NEUTRAL_KEYS = frozenset({"num_workers", "device", "notes", "keep_checkpoints", "data_root", "cache", "save_before_ca", "ca_eval", "test_batch_size"})


@dataclass(frozen=True)
class RunFolder:
    """A run's folder; run.json in it holds the resolved config, versions and whether the run has finished."""

    path: Path

    @classmethod
    def open(cls, experiment: Path, config: Config, *, resume: bool) -> RunFolder:
        """The newest unfinished run of `experiment` when resuming, else a new one named by date and time.

        Raises:
            UserError: the unfinished run has another config, or the folder cannot be made.
        """
        if resume:
            unfinished = [run for run in cls.all(experiment) if not run.status().get("finished")]
            if unfinished:
                unfinished[-1].check_same(config)
                return unfinished[-1]
        stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        for suffix in ("", *(f"-{i}" for i in range(2, 1000))):
            path = experiment / (stamp + suffix)
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise UserError(f"--out: the folder {path} cannot be made ({error.strerror}); name another with --out DIR") from None
            run = cls(path)
            run._write({"finished": False, "config": config.model_dump(mode="json"), "environment": environment()})
            return run
        raise UserError(f"--out: too many runs named {stamp} in {experiment}")

    @classmethod
    def all(cls, experiment: Path) -> list[RunFolder]:
        """Runs of an experiment, oldest first."""
        return [cls(file.parent) for file in sorted(experiment.glob("*/run.json"))]

    @classmethod
    def newest(cls, experiment: Path) -> RunFolder:
        """The newest run, finished or not. Raises UserError when there is none."""
        runs = cls.all(experiment)
        if not runs:
            raise UserError(f"there is no run in {experiment}; train first, or name the folder with --out DIR")
        return runs[-1]

    def status(self) -> dict[str, Any]:
        try:
            return json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def finish(self) -> None:
        """Mark the run as complete: --resume will start a new one."""
        self._write({**self.status(), "finished": True})

    def check_same(self, config: Config) -> None:
        """Raises UserError, naming the keys, when `config` computes something else than the run's own."""
        before, now = self.status().get("config", {}), config.model_dump(mode="json")
        changed = sorted(key for key in {*before, *now} - NEUTRAL_KEYS if before.get(key) != now.get(key))
        if changed:
            details = ", ".join(f"{key} (was {before.get(key)!r}, is {now.get(key)!r})" for key in changed[:5])
            raise UserError(f"--resume: {self.path} was started with another config: {details}. Put the setting back, or start "
                            "a new run without --resume.")

    def _write(self, content: dict[str, Any]) -> None:
        write_atomic(self.path / "run.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
