"""A finished run learns more tasks, and ends where one run over all of them ends."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import main
import trainer
from models import learner_class
from models.tools.dry_run import describe_run
from models.tools.extend import extended, parent_config
from models.tools.predict import load_learner
from tests.photos import config_of, draw, last_checkpoint, photos, pixels
from tests.run_files import assert_same_run, only_run, tiny_config
from tests.support import MICRO_VIT
from tests.utils.run.test_resume import run_stopping_at_every_checkpoint
from trainer import train
from utils.data.data_manager import DataManager
from utils.errors import UserError
from utils.files import file_sha256
from utils.run.run_folder import RunFolder

TASKS = [["ant", "bee"], ["cat", "dog"], ["elk"], ["fox", "gnu"]]
BASE = 2  # tasks of the run that is extended
HELD_OUT_BY_PLACE = {"slca_best"}  # which images are held out depends on the files before them
LEARNED_OF_TASKS_TO_COME = {"inflora", "dualprompt"}  # what they do in a task depends on how many are planned


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(trainer, "write_report", lambda result, folder: None)


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
            extended(tmp_path / "start", "photos")
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


@pytest.fixture
def finished(tmp_path) -> Path:
    """A finished run of ncm over two tasks of photos."""
    train(config_of(tmp_path / "start", "ncm", TASKS[:BASE], seed=[1993, 7]), tmp_path / "logs", name="animals")
    return only_run(tmp_path / "logs" / "animals")


def extend(run: Path, data: dict[str, str], *more: str) -> int:
    return main.main(["extend", str(run), "--data", data["train"], "--test", data["test"], *more])


def test_the_command_writes_a_run_beside_its_parent_and_names_it(finished, tmp_path):
    assert extend(finished.parent, photos(tmp_path / "elk", ["elk"])) == 0
    child = next(path.parent for path in finished.parent.glob("*/run.json") if path.parent != finished)
    status = json.loads((child / "run.json").read_text())
    checkpoint = finished / "seed7" / "checkpoints" / "task_02" / "checkpoint.json"
    assert status["finished"] and status["parent"]["run"] == str(finished)
    assert status["parent"]["seeds"]["7"]["sha256"] == file_sha256(checkpoint)
    meta = json.loads(json.loads((child / "seed7/checkpoints/task_03/checkpoint.json").read_text())["content"])["meta"]
    assert meta["parent"] == file_sha256(checkpoint), "the chain: a checkpoint's own checksum vouches for its parent's"
    assert extend(finished.parent, photos(tmp_path / "fox", ["fox"])) == 0, "the newest finished run is the child now"
    newest = RunFolder.newest(finished.parent)
    assert newest.status()["parent"]["run"] == str(child)
    assert load_learner(newest.path).stream.class_names[-2:] == ["elk", "fox"]


def test_old_test_images_are_measured_where_they_are_and_a_dash_where_they_are_not(finished, tmp_path):
    data = photos(tmp_path / "elk", ["elk"])
    (tmp_path / "start" / "train").rename(tmp_path / "away")
    assert extend(finished, data, "--name", "measured") == 0
    rows = json.loads((only_run(tmp_path / "logs" / "measured") / "results.json").read_text())["seeds"][0]
    assert None not in rows["accuracy_matrix"][2] and rows["top1_curve"][2] is not None, "test images are enough to measure"
    (tmp_path / "start" / "test" / "bee" / "0.png").unlink()
    assert extend(finished, data, "--name", "unmeasured") == 0
    rows = json.loads((only_run(tmp_path / "logs" / "unmeasured") / "results.json").read_text())["seeds"][0]
    assert rows["accuracy_matrix"][2][:2] == [None, None] and rows["accuracy_matrix"][2][2] is not None
    assert rows["top1_curve"][2] is None and rows["last"] is None, "an accuracy over the new class alone is none over all classes"
    assert rows["accuracy_matrix"][1] == json.loads((finished / "results.json").read_text())["seeds"][0]["accuracy_matrix"][1] + [None]


def test_an_extension_that_was_stopped_is_resumed(tmp_path, monkeypatch):
    train(config_of(tmp_path / "start", "slca", TASKS[:BASE], checkpoint_every=1), tmp_path, name="start")
    data = photos(tmp_path / "elk", ["elk"])
    config, parent = extended(only_run(tmp_path / "start"), data["train"], data["test"])
    train(config, tmp_path, name="whole", parent=parent)
    run_stopping_at_every_checkpoint(config, tmp_path / "stopped", monkeypatch, parent=parent)
    assert_same_run(only_run(tmp_path / "whole"), only_run(tmp_path / "stopped" / "run"))


@pytest.mark.parametrize(("arguments", "told"), [
    (["--set", "torch_seed=5"], "--set torch_seed: it was 1 when"),
    (["--set", "seed=3"], "--set seed: .* has no seed 3, allowed: 1993, 7"),
    (["--set", "epochs=0.5"], "epochs"),
])
def test_settings_that_must_stay_are_refused(finished, tmp_path, capsys, arguments, told):
    assert extend(finished, photos(tmp_path / "elk", ["elk"]), *arguments) == 2
    assert re.search(told, capsys.readouterr().err)


def test_known_classes_are_no_new_task(finished, tmp_path, capsys):
    assert extend(finished, photos(tmp_path / "more", ["elk", "bee"])) == 2
    assert "bee is a class that the model knows already" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["loop", "~nobody/photos"])
def test_new_images_in_a_place_that_leads_nowhere_are_one_sentence(place, finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    assert main.main(["extend", str(finished), "--data", place]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_run_that_is_not_finished_or_not_there_is_refused(finished, tmp_path, capsys):
    (finished / "run.json").write_text(json.dumps({**json.loads((finished / "run.json").read_text()), "finished": False}))
    assert extend(finished, photos(tmp_path / "elk", ["elk"])) == 2
    assert "no finished run; finish it first" in capsys.readouterr().err
    assert extend(tmp_path / "nothing", photos(tmp_path / "elk", ["elk"])) == 2
    assert "no finished run; name the folder of one" in capsys.readouterr().err


def test_a_parent_that_changed_is_not_gone_on_from(finished, tmp_path):
    _, parent = extended(finished, photos(tmp_path / "elk", ["elk"])["train"])
    checkpoint = finished / "seed7" / "checkpoints" / "task_02" / "checkpoint.json"
    checkpoint.write_text(checkpoint.read_text() + " ")
    with pytest.raises(UserError, match="which this run goes on from, is not the same any more"):
        parent.checkpoint(7)


def test_a_method_that_replays_images_says_that_they_are_gone(tmp_path):
    train(config_of(tmp_path / "start", "replay", TASKS[:BASE]), tmp_path, name="start")
    (tmp_path / "start" / "train" / "ant" / "0.png").unlink()
    config, parent = extended(only_run(tmp_path / "start"), photos(tmp_path / "elk", ["elk"])["train"])
    with pytest.raises(UserError, match=r"stored images of old classes .* class 'ant' had 8 images in train, has 7 images"):
        train(config, tmp_path, name="next", parent=parent)


def test_images_of_an_npz_file_extend_a_run_of_grey_arrays(tmp_path):
    """Size, channels and normalisation are the parent's: here 16 pixels, grey, from arrays that are gone."""
    def arrays(path: Path, names: list[str], size: int) -> str:
        images, labels = np.concatenate([pixels(name, 6) for name in names]), np.repeat(np.arange(len(names)), 6)
        grey = np.repeat(np.repeat(images[..., :1], size, axis=1), size, axis=2)
        np.savez(path, x_train=grey, y_train=labels, x_test=grey, y_test=labels, class_names=names)
        return str(path)

    vit = {"timm": "vit_tiny_patch16_224", "args": {**MICRO_VIT, "in_chans": 1}}
    dataset = {"name": "grey", "layout": "npz", "root": arrays(tmp_path / "old.npz", ["ant", "bee"], 1)}
    train(tiny_config(model_name="lda", dataset=dataset, init_cls=1, increment=1, convnet_type=vit), tmp_path, name="start")
    (tmp_path / "old.npz").unlink()
    run = only_run(tmp_path / "start")
    config, parent = extended(run, arrays(tmp_path / "new.npz", ["cat"], 2))
    train(config, tmp_path, name="npz", parent=parent)
    config, parent = extended(only_run(tmp_path / "npz"), str(draw(tmp_path / "dogs", ["dog"], 6)))
    train(config, tmp_path, name="photos", parent=parent)
    before, after = load_learner(run), load_learner(only_run(tmp_path / "photos"))
    assert after.format == before.format and after.stream.class_names == [*before.stream.class_names, "cat", "dog"]
    assert after.predict(pixels("dog", 3, "test"), 1).names == [["dog"]] * 3


def listed(folder: Path, names: dict[str, str], split: str) -> Path:
    """A list file of drawn images under the labels that `names` gives their classes."""
    draw(folder / split, list(names), 6, split)
    lines = [f"{split}/{name}/{number}.png {label}" for name, label in names.items() for number in range(6)]
    (folder / f"{split}.txt").write_text("\n".join(lines))
    return folder / f"{split}.txt"


def test_a_list_file_extends_a_run_and_its_classes_stay_measured(finished, tmp_path):
    run = finished
    for number, labels in enumerate([{"elk": "elk"}, {"fox": "7", "gnu": "8"}]):  # numbers may go on from those before
        place = tmp_path / f"lists {number}"
        data = {split: str(listed(place, labels, split)) for split in ("train", "test")}
        config, parent = extended(run, data["train"], data["test"])
        train(config, tmp_path / "listed", name=f"{number}", parent=parent)
        run = only_run(tmp_path / "listed" / f"{number}")
    assert load_learner(run).stream.class_names[-3:] == ["elk", "fox", "gnu"]
    assert None not in json.loads((run / "results.json").read_text())["seeds"][0]["accuracy_matrix"][-1]
    config, parent = extended(run, data["train"])
    with pytest.raises(UserError, match="classes that the model knows already"):
        train(config, tmp_path / "listed", name="again", parent=parent)


def test_a_domain_more_ends_where_one_run_over_all_domains_ends(tmp_path):
    for domain in ("clipart", "real", "sketch"):
        for split, count in (("train", 8), ("test", 3)):
            for name in ("ant", "bee"):
                (tmp_path / domain / split / name).mkdir(parents=True)
                for number, image in enumerate(pixels(f"{name} {domain}", count, split)):
                    Image.fromarray(image).save(tmp_path / domain / split / name / f"{number}.png")
    dataset = {"name": "animals", "layout": "domains", "root": str(tmp_path), "image_size": 16, "train_transform": "crop32"}
    usual = {"model_name": "slca", "scenario": "domain", "num_workers": 0, "epochs": 2}
    train(tiny_config(dataset={**dataset, "domains": ["clipart", "real"]}, **usual), tmp_path, name="start")
    train(tiny_config(dataset={**dataset, "domains": ["clipart", "real", "sketch"]}, **usual), tmp_path, name="whole")
    data = {split: str(tmp_path / "sketch" / split) for split in ("train", "test")}
    config, parent = extended(only_run(tmp_path / "start"), data["train"], data["test"])
    result = train(config, tmp_path, name="next", parent=parent)
    whole = only_run(tmp_path / "whole")
    assert_equal(last_checkpoint(only_run(tmp_path / "next")), last_checkpoint(whole))
    assert result.seeds[0].accuracy_matrix == json.loads((whole / "results.json").read_text())["seeds"][0]["accuracy_matrix"]
    assert load_learner(only_run(tmp_path / "next")).stream == load_learner(whole).stream
    config, parent = extended(only_run(tmp_path / "next"), data["train"])
    with pytest.raises(UserError, match="sketch is a domain that the model knows already"):
        train(config, tmp_path, name="again", parent=parent)
    (tmp_path / "real" / "train" / "ant").rename(tmp_path / "real" / "train" / "cow")
    with pytest.raises(UserError, match="cow is no class of the run, whose domains all have the same ones"):
        train(extended(only_run(tmp_path / "next"), str(tmp_path / "real" / "train"))[0], tmp_path, name="other", parent=parent)


def test_a_dry_run_plans_the_added_tasks_too(finished, tmp_path):
    config, _ = extended(finished, photos(tmp_path / "elk", ["elk", "fox"])["train"])
    assert DataManager.plan(config, 7).task_sizes == [2, 2, 2]
    assert "6 classes in 3 tasks" in describe_run(config)
