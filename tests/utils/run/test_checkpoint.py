"""utils/run/checkpoint.py: what stays, what goes, and what is written."""

import threading
import time

import pytest
import torch
from safetensors.torch import load_file

from utils.errors import StorageError
from utils.files import file_sha256
from utils.run.checkpoint import CheckpointStore, write_tensors


def names(store: CheckpointStore) -> list[str]:
    return sorted(folder.name for folder in store.folder.iterdir())


def save(store: CheckpointStore, task: int, epoch: int | None = None) -> None:
    store.save(task, epoch, weights={"w": torch.full((2,), float(task))}, state={}, meta={"task": task})


def test_a_run_that_is_behind_its_damaged_checkpoints_keeps_what_it_writes(tmp_path):
    told: list[str] = []
    store = CheckpointStore(tmp_path / "checkpoints", warn=told.append)
    for task in range(4):
        save(store, task)
    for name in names(store):
        (store.folder / name / "weights.safetensors").write_bytes(b"damaged")
    assert store.newest() is None and len(told) == 2
    save(store, 0, epoch=1)  # the run starts again at its first task
    assert names(store) == ["task_01_epoch_0001"]
    save(store, 0)
    save(store, 1)
    assert names(store) == ["task_01", "task_02"] and store.newest().task == 1


def test_what_a_killed_save_or_pruning_left_is_gone_after_a_resume(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    for task in range(2):
        save(store, task)
    (store.folder / ".task_03.partial").mkdir()
    (store.folder / "task_02_epoch_0001").mkdir()
    store.tidy(1, None)
    assert names(store) == ["task_01", "task_02"]


def test_a_stop_inside_a_save_leaves_no_half_written_folder(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path / "checkpoints")
    save(store, 0)
    monkeypatch.setattr("utils.run.checkpoint.write_tensors", lambda path, tensors: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save(store, 1)
    assert names(store) == ["task_01"]


def test_tensors_of_any_layout_are_written_as_they_are(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    tensors = {"whole": whole, "same memory": whole, "row": whole[1], "turned": whole.T, "empty": torch.empty(0, 4),
               "number": torch.tensor(3)}
    checksum = write_tensors(tmp_path / "t.safetensors", tensors)
    assert checksum == file_sha256(tmp_path / "t.safetensors")
    found = load_file(tmp_path / "t.safetensors")
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_statistics_that_did_not_change_are_linked_not_written_again(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints", keep="all")
    first, second = (object(), object()), (object(),)
    state = {"gaussians.0.means": torch.zeros(3), "gaussians.1.means": torch.ones(3), "temperature": torch.tensor(1.0)}
    for task, parts in enumerate([{"gaussians.0.": first}, {"gaussians.0.": first, "gaussians.1.": second},
                                  {"gaussians.0.": (object(), object()), "gaussians.1.": second}]):
        store.save(task, None, weights={}, state=state, meta={}, parts=parts)
    links = [{file.name: file.stat().st_ino for file in (store.folder / f"task_0{t}").glob("state_*")} for t in (1, 2, 3)]
    assert links[0]["state_gaussians_0.safetensors"] == links[1]["state_gaussians_0.safetensors"]  # unchanged
    assert links[1]["state_gaussians_0.safetensors"] != links[2]["state_gaussians_0.safetensors"]  # moved
    assert links[1]["state_gaussians_1.safetensors"] == links[2]["state_gaussians_1.safetensors"]
    assert store.newest().state.keys() == state.keys() and torch.equal(store.newest().state["gaussians.1.means"], torch.ones(3))


# Beside the training -------------------------------------------------------------------------------------------------

class SlowDisk:
    """Stands for `write_tensors` on a disk that writes nothing until `go` is set."""

    def __init__(self, monkeypatch) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        monkeypatch.setattr("utils.run.checkpoint.write_tensors", self.write)

    def write(self, path, tensors) -> str:
        self.begun.set()
        assert self.go.wait(20)
        return write_tensors(path, tensors)


def full_disk(*arguments: object) -> None:
    raise OSError(28, "No space left on device")


def save_beside(store: CheckpointStore, task: int, epoch: int | None = None, **more) -> None:
    store.save(task, epoch, **{"weights": {"w": torch.zeros(2)}, "state": {}, "meta": {}, **more}, beside=True)


def test_a_checkpoint_written_beside_the_training_holds_what_was_there_when_it_was_saved(tmp_path, monkeypatch):
    store, disk = CheckpointStore(tmp_path), SlowDisk(monkeypatch)
    weights, momentum, curve = torch.ones(3), torch.arange(4.0), [1.0]
    save_beside(store, 0, 1, weights={"w": weights}, state={"optimizer.0.momentum_buffer": momentum}, meta={"curve": curve})
    weights.zero_(), momentum.zero_(), curve.append(2.0)
    disk.go.set()
    store.wait()
    found = store.newest(inside=0)
    assert torch.equal(found.weights["w"], torch.ones(3)) and found.meta == {"curve": [1.0]}
    assert torch.equal(found.state["optimizer.0.momentum_buffer"], torch.arange(4.0))


def test_while_one_checkpoint_is_written_only_the_newest_of_the_others_waits(tmp_path, monkeypatch):
    store, disk = CheckpointStore(tmp_path, keep="all"), SlowDisk(monkeypatch)
    monkeypatch.setattr(store, "tidy", lambda task, epoch: None)  # so that everything that was written stays
    for epoch in (1, 2, 3):
        save_beside(store, 0, epoch)
        assert disk.begun.wait(10)
    disk.go.set()
    store.wait()
    assert names(store) == ["task_01_epoch_0001", "task_01_epoch_0003"]


def test_a_checkpoint_after_a_task_is_written_whatever_follows(tmp_path, monkeypatch):
    store, disk = CheckpointStore(tmp_path), SlowDisk(monkeypatch)
    save_beside(store, 0)
    for epoch in (1, 2):
        save_beside(store, 1, epoch)
    disk.go.set()
    store.wait()
    assert names(store) == ["task_01", "task_02_epoch_0002"]


@pytest.mark.parametrize("later", ["save", "wait"])
def test_a_full_disk_beside_the_training_is_told_at_the_next_save_or_wait(later, tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    save(store, 0)
    with monkeypatch.context() as patch:
        patch.setattr("utils.run.checkpoint.write_tensors", full_disk)
        save_beside(store, 1, 1)
        while store.is_writing:  # else the next one would take its place
            time.sleep(0.001)
        with pytest.raises(StorageError, match=r"task_02_epoch_0001 cannot be written: No space left on device; earlier .* intact"):
            save_beside(store, 1) if later == "save" else store.wait()
    assert names(store) == ["task_01"]
    save_beside(store, 1)
    store.wait()
    assert names(store) == ["task_01", "task_02"]


def test_an_error_of_the_training_is_not_hidden_by_one_of_the_disk(tmp_path, monkeypatch):
    told: list[str] = []
    store = CheckpointStore(tmp_path, warn=told.append)
    monkeypatch.setattr("utils.run.checkpoint.write_tensors", full_disk)
    with pytest.raises(KeyboardInterrupt), store.settled():
        save_beside(store, 0)
        raise KeyboardInterrupt
    assert len(told) == 1 and "No space left" in told[0] and names(store) == []


def test_statistics_are_linked_when_they_are_written_beside_the_training_too(tmp_path):
    store, first, second = CheckpointStore(tmp_path, keep="all"), (object(),), (object(),)
    state = {"gaussians.0.means": torch.zeros(3), "gaussians.1.means": torch.ones(3)}
    for task, parts in enumerate([{"gaussians.0.": first}, {"gaussians.0.": first, "gaussians.1.": second}]):
        save_beside(store, task, state=state, parts=parts)
    store.wait()
    one, two = (store.folder / name / "state_gaussians_0.safetensors" for name in ("task_01", "task_02"))
    assert one.samefile(two)
    assert torch.equal(store.newest().state["gaussians.1.means"], torch.ones(3))


def test_a_save_that_failed_is_never_linked_to(tmp_path, monkeypatch):
    store, part = CheckpointStore(tmp_path), {"gaussians.0.": (object(),)}
    with monkeypatch.context() as patch:
        patch.setattr("utils.run.checkpoint.write_atomic", full_disk)
        save_beside(store, 0, parts=part, state={"gaussians.0.means": torch.zeros(3)})
        with pytest.raises(StorageError):
            store.wait()
    assert store._written == {}


def test_lines_of_the_metrics_are_on_the_disk_before_their_checkpoint(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr("utils.run.checkpoint.sync_file", lambda path: flushed.append((path, (tmp_path / "c" / "task_01").exists())))
    save(CheckpointStore(tmp_path / "c", flushed_first=[tmp_path / "metrics.jsonl"]), 0)
    assert flushed == [(tmp_path / "metrics.jsonl", False)]


def test_tensors_that_cannot_be_written_are_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        write_tensors(tmp_path / "gone" / "x.safetensors", {"w": torch.zeros(2)})
    assert raised.value.filename == str(tmp_path / "gone" / "x.safetensors")
