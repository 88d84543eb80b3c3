"""The run that another one goes on from: which checkpoint of each seed, and its SHA-256.

A checkpoint's checkpoint.json holds the SHA-256 of its tensors, and of the parent's checkpoint.json where the run has a parent. So
the SHA-256 of that one file vouches for all that was learned before.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import file_sha256
from utils.run.checkpoint import Checkpoint, CheckpointStore
from utils.run.run_folder import RunFolder

log = logging.getLogger("slca")


@dataclass(frozen=True)
class Parent:
    """A finished run and the newest checkpoint of each seed that is taken from it."""

    path: Path
    checkpoints: Mapping[int, str]  # seed -> name of the checkpoint's folder
    sha256: Mapping[int, str]  # seed -> of its checkpoint.json
    merged: Parent | None = None  # the other run, where two became one

    @classmethod
    def of(cls, run: RunFolder, seeds: Iterable[int]) -> Parent:
        """Raises UserError: a seed has no checkpoint."""
        names: dict[int, str] = {}
        for seed in seeds:
            found = _store(run.path, seed).newest()
            if found is None:
                raise UserError(f"{run.path} has no checkpoint of seed {seed}, so nothing can go on from it; train it with "
                                "keep_checkpoints 'last', or name the seeds that have one with --set seed=...")
            names[seed] = found.name
        return cls(run.path.resolve(), names, {seed: _sha256(run.path, seed, name) for seed, name in names.items()})

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Parent:
        seeds = content["seeds"].items()
        merged = cls.from_json(content["merged"]) if "merged" in content else None
        return cls(Path(content["run"]), {int(seed): each["checkpoint"] for seed, each in seeds},
                   {int(seed): each["sha256"] for seed, each in seeds}, merged)

    def to_json(self) -> dict[str, Any]:
        return {"run": str(self.path), "seeds": {str(seed): {"checkpoint": name, "sha256": self.sha256[seed]}
                                                 for seed, name in self.checkpoints.items()},
                **({} if self.merged is None else {"merged": self.merged.to_json()})}

    def proof(self, seed: int) -> str:
        """What the next checkpoint holds of this one: its SHA-256, with that of the other run where two became one."""
        return self.sha256[seed] if self.merged is None else f"{self.sha256[seed]}+{self.merged.proof(seed)}"

    def checkpoint(self, seed: int) -> Checkpoint:
        """What the seed goes on from. Raises UserError: it is gone, damaged, or another one now."""
        store, name = _store(self.path, seed), self.checkpoints[seed]
        found = store.named(name)
        if found is None or _sha256(self.path, seed, name) != self.sha256[seed]:
            trouble = "gone" if found is None else "not the same any more"
            raise UserError(f"{store.folder / name}, which this run goes on from, is {trouble}; put it back, or start anew from another "
                            "run")
        return found


def _store(run: Path, seed: int) -> CheckpointStore:
    return CheckpointStore(run / f"seed{seed}" / "checkpoints", warn=log.warning)


def _sha256(run: Path, seed: int, name: str) -> str:
    return file_sha256(run / f"seed{seed}" / "checkpoints" / name / "checkpoint.json")
