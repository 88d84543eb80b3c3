"""Checkpoints of one seed: safetensors only, checksummed, written whole or not at all.

    checkpoints/task_03/              after task 3 (counted from 1): everything the next task needs
    checkpoints/task_04_epoch_0007/   inside task 4, after its 7th epoch; only the newest one stays
        weights.safetensors           the network (frozen pre-trained tensors are left out, their SHA-256 kept)
        state.safetensors             statistics, heads before alignment; inside a task the optimiser
        state_gaussians_0.safetensors statistics of the first task's classes, ...; a link to the file of the checkpoint before, as long
                                      as they have not changed
        checkpoint.json               figures so far, the stream of tasks, checksums of the others

A folder is filled under a temporary name and renamed, so one that has its name is complete. The training waits only while the
tensors are copied to host memory; a thread does the rest (utils/run/background.py).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from utils.errors import StorageError, UserError
from utils.files import bytes_of_file, file_sha256, replacing, sha256_of, sync_file, sync_folder, write_atomic
from utils.run.background import NewestJob, host_copies

PARTIAL = ".partial"  # ends the name of a folder that is being written
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # so safetensors tells what the system said
DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError)  # what reading one may raise
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
        warn: called with a sentence about a damaged checkpoint that was passed over, or one that could not be written beside
            another error.
        flushed_first: files whose content so far must be on the disk before a checkpoint is.
    """

    def __init__(self, folder: Path, keep: str = "last", warn: Callable[[str], None] = print, flushed_first: Sequence[Path] = ()) -> None:
        self.folder = folder
        self.keep = keep
        self.warn = warn
        self.flushed_first = flushed_first
        self._writer = NewestJob()
        self._written: dict[str, tuple[tuple[object, ...], Path, str]] = {}  # prefix -> objects, file and checksum of the last save

    def save(self, task: int, epoch: int | None, *, weights: Mapping[str, Tensor], state: Mapping[str, Tensor],
             meta: Mapping[str, Any], parts: Mapping[str, tuple[object, ...]] | None = None, beside: bool = False) -> None:
        """Write one checkpoint and remove those that it makes superfluous.

        Args:
            parts: prefixes of `state` that get files of their own, with the objects that their tensors follow from; where these are
                the objects of the last save, its file is linked instead of written. Such tensors never change in place.
            beside: copy the tensors to host memory and return; a thread writes them. One inside a task that still waits when the
                next one comes is never written; one after a task always is.

        Raises:
            StorageError: it, or one that was written beside the training since the last call, cannot be written (disk full, no
                permission); earlier ones stay as they were.
        """
        if self.keep == "none":
            return
        self._writer.drop_waiting()  # it is older; and no more than two copies are held: one that is being written, and this one
        if epoch is None or not beside:
            self._writer.wait()
        parts = dict(parts or {})
        groups = {"weights.safetensors": dict(weights),
                  "state.safetensors": {key: tensor for key, tensor in state.items() if not key.startswith(tuple(parts))},
                  **{prefix: {key: tensor for key, tensor in state.items() if key.startswith(prefix)} for prefix in parts}}
        if beside:
            linked = {prefix for prefix, objects in parts.items() if self._file_of(prefix, objects) is not None}
            copies = host_copies({(group, key): tensor for group, tensors in groups.items() for key, tensor in tensors.items()
                                  if group not in linked and not (group in parts and tensor.is_cpu)})
            for (group, key), copy in copies.items():
                groups[group][key] = copy
        content = json.dumps(dict(meta))  # now: the training goes on adding figures
        job = partial(self._write, task, epoch, groups, parts, content)
        if beside:
            self._writer.put(job, replaceable=epoch is not None)
        else:
            job()

    @property
    def is_writing(self) -> bool:
        """Whether something that was saved beside the training is not on the disk yet."""
        return self._writer.busy

    def wait(self) -> None:
        """Return when all that was saved beside the training is on the disk. Raises StorageError."""
        self._writer.wait()

    @contextmanager
    def settled(self) -> Iterator[None]:
        """What is saved inside is on the disk afterwards, also after an error or a stop. Raises StorageError."""
        try:
            yield
        except BaseException:
            problem = self._writer.settle()
            if isinstance(problem, StorageError):
                self.warn(str(problem))
            raise
        self.wait()

    def _write(self, task: int, epoch: int | None, groups: Mapping[str, Mapping[str, Tensor]], parts: Mapping[str, tuple[object, ...]],
               meta: str) -> None:
        """Fill a folder under a temporary name, rename it, and remove what it makes superfluous. Raises StorageError.

        Args:
            groups: tensors by file, or by prefix for those of `parts`; meta: as JSON.
        """
        name = f"task_{task + 1:02d}" + ("" if epoch is None else f"_epoch_{epoch:04d}")
        filled = self.folder / f".{name}{PARTIAL}"
        try:
            shutil.rmtree(filled, ignore_errors=True)
            filled.mkdir(parents=True)
            checksums = {file: write_tensors(filled / file, tensors) for file, tensors in groups.items() if file not in parts}
            written = {}
            for prefix, objects in parts.items():
                file = f"state_{prefix.strip('.').replace('.', '_')}.safetensors"
                checksums[file] = self._write_part(filled / file, prefix, objects, groups[prefix])
                written[prefix] = objects, self.folder / name / file, checksums[file]
            content = f'{{"meta": {meta}, "sha256": {json.dumps(checksums)}}}'
            write_atomic(filled / "checkpoint.json", json.dumps({"content": content, "sha256": sha256_of(content.encode())}))
            for path in self.flushed_first:
                sync_file(path)
            shutil.rmtree(self.folder / name, ignore_errors=True)
            filled.rename(self.folder / name)
            self._written |= written
            sync_folder(self.folder)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise StorageError(f"checkpoint {self.folder / name} cannot be written: {reason}; earlier checkpoints are "
                            "intact. Free some space, then continue with --resume.") from None
        finally:  # also when a signal stops the program here
            shutil.rmtree(filled, ignore_errors=True)
        self.tidy(task, epoch)

    def _file_of(self, prefix: str, objects: tuple[object, ...]) -> tuple[Path, str] | None:
        """File and checksum of the last save of this prefix, where it was of the same objects."""
        before, file, checksum = self._written.get(prefix, ((), self.folder, ""))
        same = checksum and len(before) == len(objects) and all(a is b for a, b in zip(before, objects, strict=True))
        return (file, checksum) if same else None

    def _write_part(self, path: Path, prefix: str, objects: tuple[object, ...], tensors: Mapping[str, Tensor]) -> str:
        """Link the last save's file of this prefix, or write the tensors; returns the checksum."""
        found = self._file_of(prefix, objects)
        if found is not None:
            file, checksum = found
            try:
                os.link(file, path)
                return checksum
            except OSError:  # the file is gone, or the file system has no links
                pass
        return write_tensors(path, tensors)

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
            except DAMAGED as error:
                self.warn(f"checkpoint {self.folder / name} is damaged ({error}); using the one before it")
        return None

    def named(self, name: str) -> Checkpoint | None:
        """The checkpoint in the folder `name`; None where it is missing or damaged."""
        for found, task, epoch in self._names():
            if found == name:
                try:
                    return self._read(name, task, epoch)
                except DAMAGED as error:
                    self.warn(f"checkpoint {self.folder / name} is damaged ({error})")
        return None

    def names(self) -> list[str]:
        """Names of the finished tasks' checkpoints, oldest first."""
        return [name for name, _, epoch in self._names() if epoch is None]

    def _read(self, name: str, task: int, epoch: int | None) -> Checkpoint:
        folder = self.folder / name
        outer = json.loads(bytes_of_file(folder / "checkpoint.json"))
        if sha256_of(outer["content"].encode()) != outer["sha256"]:
            raise ValueError("checkpoint.json does not match its checksum")
        content = json.loads(outer["content"])
        tensors = {}
        for file, checksum in content["sha256"].items():
            data = bytes_of_file(folder / file)
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

    Raises:
        OSError: the file cannot be written.
        SafetensorError: the format cannot hold the tensors.
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
    try:
        save_file(plain, path)
    except SafetensorError as error:
        number = _OS_ERROR.search(str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return file_sha256(path)


def write_tensors_atomic(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """`write_tensors` under a temporary name, then renamed. Raises OSError or SafetensorError."""
    with replacing(path) as temporary:
        write_tensors(temporary, tensors)


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
