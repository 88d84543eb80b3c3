"""Two runs that learned apart, against one run over both."""

from pathlib import Path

import numpy as np
import pytest
import torch

import main
import trainer
from models.tools.predict import load_learner
from tests.photos import config_of, pixels
from tests.run_files import only_run
from trainer import train
from utils.run.run_folder import RunFolder

ONE, TWO = [["ant", "bee"], ["cat"]], [["dog"], ["elk", "fox"]]
FROZEN = {"bcb_lrscale": 0.0, "readout": "rgda"}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(trainer, "write_report", lambda result, folder: None)


def run_over(tmp_path: Path, name: str, tasks: list[list[str]], method: str, **settings) -> Path:
    train(config_of(tmp_path / f"{name} images", method, tasks, **settings), tmp_path, name=name)
    return only_run(tmp_path / name)


@pytest.mark.parametrize(("method", "settings"), [("ncm", {}), ("lda", {}), ("fecam", {}), ("slca", FROZEN),
                                                  ("slca", {**FROZEN, "readout": "lda", "ca_cov": "shared"})])
def test_two_runs_on_a_frozen_backbone_are_one_run_over_both(tmp_path, method, settings):
    one, two, both = (run_over(tmp_path, name, tasks, method, **settings) for name, tasks in
                      (("one", ONE), ("two", TWO), ("both", ONE + TWO)))
    assert main.main(["merge", str(one), str(two), "--name", "merged"]) == 0
    merged, whole = (load_learner(path) for path in (only_run(tmp_path / "merged"), both))
    assert merged.stream.class_names == whole.stream.class_names and merged.stream.task_sizes == [2, 1, 1, 2]
    state, expected = merged.learner.extra_state(), whole.learner.extra_state()
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5)
    images = np.concatenate([pixels(name, 5, "test") for task in ONE + TWO for name in task])
    assert merged.predict(images, 6).names == whole.predict(images, 6).names
    parent = RunFolder(only_run(tmp_path / "merged")).status()["parent"]
    assert parent["run"] == str(one) and parent["merged"]["run"] == str(two)


@pytest.mark.parametrize(("method", "settings", "told"), [
    ("slca", {}, "backbones are not the same"), ("slca", {"bcb_lrscale": 0.0}, "two runs of slca are not one run"),
    ("ranpac", {}, "two runs of ranpac are not one run"), ("ease", {}, "backbones are not the same")])
def test_where_it_would_not_be_exact_it_is_refused_with_the_reason(tmp_path, capsys, method, settings, told):
    one, two = (run_over(tmp_path, name, tasks, method, **settings) for name, tasks in (("one", ONE), ("two", TWO)))
    assert main.main(["merge", str(one), str(two)]) == 2
    assert told in capsys.readouterr().err


def test_a_class_in_both_runs_and_other_methods_are_refused(tmp_path, capsys):
    one, two = run_over(tmp_path, "one", ONE, "ncm"), run_over(tmp_path, "two", [["ant"], ["dog"]], "ncm")
    assert main.main(["merge", str(one), str(two)]) == 2
    assert "ant in both runs" in capsys.readouterr().err
    assert main.main(["merge", str(one), str(run_over(tmp_path, "three", TWO, "lda"))]) == 2
    assert "model_name is 'ncm'" in capsys.readouterr().err
