"""More images of known classes, against a run that had all of them at once."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import main
import trainer
from models.tools.predict import load_learner
from tests.photos import config_of, draw, pixels
from tests.run_files import only_run
from trainer import train

TASKS = [["ant", "bee"], ["cat"]]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(trainer, "write_report", lambda result, folder: None)


def run_of(tmp_path: Path, name: str, more: dict[str, int], **settings) -> Path:
    """A run whose classes have `more` images beside the usual eight."""
    config = config_of(tmp_path / f"{name} images", settings.pop("method", "slca"), TASKS, bcb_lrscale=0.0, **settings)
    for label, count in more.items():
        save(tmp_path / f"{name} images" / "train" / label, label, count)
    train(config, tmp_path, name=name)
    return only_run(tmp_path / name)


def save(folder: Path, name: str, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(pixels(name, count, "more")):
        Image.fromarray(image).save(folder / f"more {number}.png")


def update(run: Path, folder: Path) -> int:
    return main.main(["extend", str(run), "--data", str(folder), "--update", "--name", "updated"])


@pytest.mark.parametrize("settings", [{"readout": "rgda"}, {"readout": "rgda", "ca_cov": "diag"}, {"readout": "lda", "ca_cov": "shared"}])
def test_refined_statistics_are_those_of_all_images_at_once(tmp_path, settings):
    more = {"ant": 30, "cat": 5}  # ant has more images than the 16 dimensions then
    run, whole = run_of(tmp_path, "run", {}, **settings), run_of(tmp_path, "whole", more, **settings)
    for name, count in more.items():
        save(tmp_path / "more" / name, name, count)
    assert update(run, tmp_path / "more") == 0
    one, other = (load_learner(path).learner for path in (only_run(tmp_path / "updated"), whole))
    assert [g.count for g in one.gaussians.classes] == [g.count for g in other.gaussians.classes] == [38, 8, 13]
    for refined, fitted in zip(one.gaussians.classes, other.gaussians.classes, strict=True):
        torch.testing.assert_close(refined.mean, fitted.mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(refined.covariance(), fitted.covariance(), rtol=1e-4, atol=1e-5)
    if settings.get("ca_cov") == "shared":
        torch.testing.assert_close(one.gaussians.pooled, other.gaussians.pooled, rtol=1e-4, atol=1e-4)
    images = np.concatenate([pixels(name, 5, "test") for task in TASKS for name in task])
    found = [load_learner(path).predict(images, 3) for path in (only_run(tmp_path / "updated"), whole)]
    assert found[0].names == found[1].names


def test_aligned_heads_are_aligned_again_on_the_refined_gaussians(tmp_path):
    run = run_of(tmp_path, "run", {})
    save(tmp_path / "more" / "ant", "ant", 20)
    assert update(run, tmp_path / "more") == 0
    before, after = (load_learner(path).learner for path in (run, only_run(tmp_path / "updated")))
    assert all(torch.equal(tensor, after.heads_before[name]) for name, tensor in before.heads_before.items())
    assert not torch.equal(before.net.heads[0].weight, after.net.heads[0].weight)


@pytest.mark.parametrize(("method", "classes", "told"), [
    ("slca", ["ant", "yak"], "holds yak. Learn new classes without --update"), ("ncm", ["ant"], "does not keep of its old images")])
def test_new_classes_and_other_methods_are_refused(tmp_path, capsys, method, classes, told):
    train(config_of(tmp_path / "images", method, TASKS), tmp_path, name="run")
    assert update(only_run(tmp_path / "run"), draw(tmp_path / "more", classes, 3)) == 2
    assert told in capsys.readouterr().err


def test_options_of_a_task_are_refused_with_an_update(capsys):
    assert main.main(["extend", "logs", "--data", "more", "--update", "--set", "epochs=1"]) == 2
    assert "--set: belongs to learning a task" in capsys.readouterr().err
