"""utils/run/checkpoint.py: what stays, what goes, and what is written."""

import pytest
import torch
from safetensors.torch import load_file

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
