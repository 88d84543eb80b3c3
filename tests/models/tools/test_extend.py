"""A finished run learns more tasks, and ends where one run over all of them ends."""

import json
from pathlib import Path

import pytest
import torch

import main
import trainer
from models import learner_class
from models.tools.extend import extended, parent_config
from tests.photos import draw
from tests.run_files import only_run, tensors, tiny_config
from tests.support import that_it_has
from trainer import train
from utils.errors import UserError
from utils.run.checkpoint import CheckpointStore
from utils.run.run_folder import RunFolder

TASKS = [["ant", "bee"], ["cat", "dog"], ["elk"], ["fox", "gnu"]]
BASE = 2  # tasks of the run that is extended
HELD_OUT_BY_PLACE = {"slca_best"}  # which images are held out depends on the files before them
LEARNED_OF_TASKS_TO_COME = {"inflora", "dualprompt"}  # what they do in a task depends on how many are planned


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(trainer, "write_report", lambda result, folder: None)


def photos(folder: Path, names: list[str]) -> dict[str, str]:
    return {"train": str(draw(folder / "train", names, 8)), "test": str(draw(folder / "test", names, 3, "test"))}


def config_of(folder: Path, method: str, tasks: list[list[str]], **settings):
    names = [name for task in tasks for name in task]
    dataset = {"name": "photos", **photos(folder, names), "image_size": 16, "train_transform": "crop32"}
    return tiny_config(**{**that_it_has(method, {"epochs": 2}), "model_name": method, "dataset": dataset, "tasks": tasks, "num_workers": 0,
                          "checkpoint_every": 5, **settings})


def last_checkpoint(run: Path) -> dict[str, torch.Tensor]:
    (seed,) = run.glob("seed*")
    newest = CheckpointStore(seed / "checkpoints").names()[-1]
    return {name.split(f"/{newest}/")[1]: tensor for name, tensor in tensors(run).items() if f"/{newest}/" in name}


def extend_by(tmp_path: Path, run: Path, tasks: list[list[str]], **settings) -> Path:
    """The last of the runs that learn `tasks` one after another."""
    for number, names in enumerate(tasks):
        data = photos(tmp_path / f"added {names[0]}", names)
        config, parent = extended(run, data["train"], data["test"], settings)
        train(config, tmp_path / "extended", name=f"{number}", parent=parent)
        run = only_run(tmp_path / "extended" / f"{number}")
    return run


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys() and one
    unequal = [name for name in one if one[name].numpy().tobytes() != other[name].numpy().tobytes()]
    assert not unequal, f"{len(unequal)} of {len(one)} tensors differ: {unequal[:5]}"


def test_extending_a_run_task_by_task_equals_one_run_over_all_tasks(method, tmp_path):
    kind = learner_class(method)
    whole = config_of(tmp_path / "whole", method, TASKS)
    start = config_of(tmp_path / "start", method, TASKS[:BASE])
    train(start, tmp_path, name="start")
    if kind.not_extended:
        with pytest.raises(UserError, match="cannot be extended, because"):
            extended(tmp_path / "start", str(tmp_path))
        return
    if kind.rehearsal_free:
        (tmp_path / "start" / "train").rename(tmp_path / "gone")
    last = extend_by(tmp_path, only_run(tmp_path / "start"), TASKS[BASE:])
    if method in LEARNED_OF_TASKS_TO_COME or not kind.rehearsal_free:  # positions of stored images are others
        assert len(json.loads((last / "results.json").read_text())["seeds"][0]["top1_curve"]) == len(TASKS)
        return
    if method not in HELD_OUT_BY_PLACE:
        train(whole, tmp_path, name="whole")
        assert_equal(last_checkpoint(last), last_checkpoint(only_run(tmp_path / "whole")))
    (tmp_path / "gone").rename(tmp_path / "start" / "train")
    train(parent_config(RunFolder(last)), tmp_path, name="again")  # its config alone, from the first task on
    assert_equal(last_checkpoint(last), last_checkpoint(only_run(tmp_path / "again")))
