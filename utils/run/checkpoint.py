"""Checkpoints of one seed: safetensors only, checksummed, written whole or not at all.

    checkpoints/task_03/              after task 3 (counted from 1): everything the next task needs
    checkpoints/task_04_epoch_0007/   inside task 4, after its 7th epoch; only the newest one stays
        weights.safetensors           the network (frozen pre-trained tensors are left out, their SHA-256 kept)
        state.safetensors             statistics, heads before alignment; inside a task the optimiser
        state_gaussians_0.safetensors statistics of the first task's classes, ...; a link to the file of the checkpoint before, as long
                                      as they have not changed
        checkpoint.json               figures so far, the stream of tasks, checksums of the others

A folder is filled under a temporary name and renamed, so one that has its name is complete.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from utils.errors import StorageError, UserError
from utils.files import file_sha256, sha256_of, sync_folder, write_atomic

PARTIAL = ".partial"  # ends the name of a folder that is being written
_NAME = re.compile(r"task_(\d+)(?:_epoch_(\d+))?")


@dataclass(frozen=True)
class Checkpoint:
    """What `CheckpointStore` read back."""

    name: str
    task: int  # tasks are counted from 0 in code
    epoch: int | None  # epochs done inside `task`; None when the task is complete
    weights: dict[str, Tensor]
    state: dict[str, Tensor]
    meta: dict[str, Any]


class CheckpointStore:
    """The checkpoints in one folder.

    Args:
        folder: made when first needed.
        keep: "last" keeps the newest two finished tasks (the older one in case the newer is damaged), "all" or "none".
        warn: called with a sentence about a damaged checkpoint that was passed over.
    """

    def __init__(self, folder: Path, keep: str = "last", warn: Callable[[str], None] = print) -> None:
        self.folder = folder
        self.keep = keep
        self.warn = warn
        self._written: dict[str, tuple[tuple[object, ...], Path, str]] = {}  # prefix -> objects, file and checksum of the last save

    def save(self, task: int, epoch: int | None, *, weights: Mapping[str, Tensor], state: Mapping[str, Tensor],
             meta: Mapping[str, Any], parts: Mapping[str, tuple[object, ...]] | None = None) -> None:
        """Write one checkpoint and remove those that it makes superfluous.

        Args:
            parts: prefixes of `state` that get files of their own, with the objects that their tensors follow from; where these are
                the objects of the last save, its file is linked instead of written.

        Raises:
            StorageError: it cannot be written (disk full, no permission); earlier ones stay as they were.
        """
        if self.keep == "none":
            return
        name = f"task_{task + 1:02d}" + ("" if epoch is None else f"_epoch_{epoch:04d}")
        partial = self.folder / f".{name}{PARTIAL}"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            rest = {key: tensor for key, tensor in state.items() if not key.startswith(tuple(parts or ()))}
            checksums = {file: write_tensors(partial / file, tensors)
                         for file, tensors in (("weights.safetensors", weights), ("state.safetensors", rest))}
            for prefix, objects in (parts or {}).items():
                file = f"state_{prefix.strip('.').replace('.', '_')}.safetensors"
                checksums[file] = self._write_part(partial / file, prefix, objects, state)
                self._written[prefix] = objects, self.folder / name / file, checksums[file]
            content = json.dumps({"meta": dict(meta), "sha256": checksums})
            write_atomic(partial / "checkpoint.json", json.dumps({"content": content, "sha256": sha256_of(content.encode())}))
            shutil.rmtree(self.folder / name, ignore_errors=True)
            partial.rename(self.folder / name)
            sync_folder(self.folder)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise StorageError(f"checkpoint {self.folder / name} cannot be written: {reason}; earlier checkpoints are "
                            "intact. Free some space, then continue with --resume.") from None
        finally:  # also when a signal stops the program here
            shutil.rmtree(partial, ignore_errors=True)
        self.tidy(task, epoch)

    def _write_part(self, path: Path, prefix: str, objects: tuple[object, ...], state: Mapping[str, Tensor]) -> str:
        """Link the last save's file of this prefix, or write the tensors; returns the checksum."""
        before, file, checksum = self._written.get(prefix, ((), path, ""))
        if checksum and len(before) == len(objects) and all(a is b for a, b in zip(before, objects, strict=True)):
            try:
                os.link(file, path)
                return checksum
            except OSError:  # the file is gone, or the file system has no links
                pass
        return write_tensors(path, {key: tensor for key, tensor in state.items() if key.startswith(prefix)})

    def tidy(self, task: int, epoch: int | None) -> None:
        """Remove what a run that is now after `task` (inside it, with `epoch` epochs done) does not need.

        That is: half-written folders, checkpoints inside tasks but this one, older tasks beyond `keep`, and checkpoints from
        further on, which are damaged, or the run would have gone on from them.
        """
        if self.keep == "none" or not self.folder.is_dir():
            return
        here = _order(task, epoch)
        stale = [name for name, t, e in self._names() if _order(t, e) > here or (e is not None and (t, e) != (task, epoch))]
        finished = [name for name, t, e in self._names() if e is None and _order(t, e) <= here]
        for name in stale + (finished[:-2] if self.keep == "last" else []):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for leftover in self.folder.glob(f".*{PARTIAL}"):
            shutil.rmtree(leftover, ignore_errors=True)

    def newest(self, task: int | None = None, *, inside: int | None = None) -> Checkpoint | None:
        """The newest undamaged checkpoint of a finished task (at or before `task`), or one inside task `inside`."""
        for name, found_task, epoch in reversed(self._names()):
            wanted = epoch is None and (task is None or found_task <= task) if inside is None else (
                found_task == inside and epoch is not None)
            if not wanted:
                continue
            try:
                return self._read(name, found_task, epoch)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
                self.warn(f"checkpoint {self.folder / name} is damaged ({error}); using the one before it")
        return None

    def names(self) -> list[str]:
        """Names of the finished tasks' checkpoints, oldest first."""
        return [name for name, _, epoch in self._names() if epoch is None]

    def _read(self, name: str, task: int, epoch: int | None) -> Checkpoint:
        folder = self.folder / name
        outer = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
        if sha256_of(outer["content"].encode()) != outer["sha256"]:
            raise ValueError("checkpoint.json does not match its checksum")
        content = json.loads(outer["content"])
        tensors = {}
        for file, checksum in content["sha256"].items():
            data = (folder / file).read_bytes()
            if sha256_of(data) != checksum:
                raise ValueError(f"{file} does not match its checksum")
            tensors[file] = load(data)
        weights = tensors.pop("weights.safetensors")
        state = {key: tensor for file in tensors.values() for key, tensor in file.items()}
        return Checkpoint(name, task, epoch, weights, state, content["meta"])

    def _names(self) -> list[tuple[str, int, int | None]]:
        """All complete checkpoints, oldest first: name, task from 0, epochs done (None: the whole task)."""
        found = []
        for folder in self.folder.iterdir() if self.folder.is_dir() else []:
            match = _NAME.fullmatch(folder.name)
            if match:
                found.append((folder.name, int(match[1]) - 1, int(match[2]) if match[2] else None))
        return sorted(found, key=lambda item: _order(item[1], item[2]))


def _order(task: int, epoch: int | None) -> tuple[int, float]:
    """Checkpoints sort by it: those inside a task before the one after it."""
    return task, float("inf") if epoch is None else epoch


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a safetensors file of tensors on any device, flushed to the disk; returns its SHA-256.

    Tensors are copied only where the format asks for it: from another device, out of a strided view, or where two share memory.
    """
    seen: set[int] = set()
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        plain[name] = tensor
    save_file(plain, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return file_sha256(path)


def write_tensors_atomic(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """`write_tensors` under a temporary name, then renamed. Raises OSError or SafetensorError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_tensors(temporary, tensors)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_base_weights(checkpoint: Checkpoint, sha256: str, folder: Path, source: str) -> None:
    """The frozen pre-trained tensors, which a checkpoint leaves out, must be the ones that it was trained on. Raises UserError."""
    before = checkpoint.meta["base_sha256"]
    if before != sha256:
        raise UserError(f"checkpoint {folder / checkpoint.name} was trained on other pre-trained weights (SHA-256 {before[:12]}...) than "
                        f"those loaded now ({sha256[:12]}..., {source}); put the original file back into pretrained/")


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's per-parameter state (momentum) as flat tensors; its rates follow from the epoch."""
    return {f"optimizer.{index}.{key}": torch.as_tensor(value) for index, state in optimizer.state_dict()["state"].items()
            for key, value in state.items() if value is not None}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore what `optimizer_tensors` gave."""
    content = optimizer.state_dict()
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            content["state"].setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict(content)
