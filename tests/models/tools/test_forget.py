"""A run that shall not know a class any more does not, and no byte of its checkpoints tells of it."""

from pathlib import Path

import numpy as np
import pytest
import torch

import main
import trainer
from models.tools.extend import extended
from models.tools.forget import forgetting
from models.tools.predict import load_learner
from tests.photos import config_of, last_checkpoint, photos, pixels
from tests.run_files import only_run
from trainer import train
from utils.errors import UserError
from utils.report.results import read_results

TASKS = [["ant", "bumblebee"], ["caterpillar"], ["dog", "elk"]]
GONE = ["bumblebee", "caterpillar"]  # one of two classes of a task, and a task's only class


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(trainer, "write_report", lambda result, folder: None)


def forgotten(tmp_path: Path, method: str, **settings) -> tuple[Path, Path]:
    """A finished run, and the one that forgot GONE."""
    train(config_of(tmp_path / "images", method, TASKS, **settings), tmp_path, name="run")
    run = only_run(tmp_path / "run")
    config, parent, edit = forgetting(run, GONE)
    train(config, tmp_path, name="less", parent=parent, edit=edit)
    return run, only_run(tmp_path / "less")


def rows_of_classes(learner, labels: list[int]) -> list[torch.Tensor]:
    """Every number that belongs to one of these classes alone."""
    rows = []
    for label in labels:
        task = int(learner.stream.task_of_class[label])
        if len(learner.net.heads):
            rows.append(learner.net.heads[task].weight[label - learner.stream.classes_before(task)])
        if hasattr(learner, "gaussians"):
            rows += [learner.gaussians[label].mean, *learner.gaussians[label].factor]
        rows += [getattr(learner, name)[label] for name in ("class_means", "precisions") if hasattr(learner, name)]
    return [row.detach() for row in rows if row.numel() > 4 and row.any()]


@pytest.mark.parametrize(("method", "settings"), [
    ("slca", {}), ("slca_pp", {}), ("slca", {"readout": "rgda"}), ("ncm", {}), ("fecam", {}), ("aper", {}), ("finetune", {}), ("l2p", {})])
def test_nothing_is_left_of_a_class_that_was_forgotten(tmp_path, method, settings):
    run, less = forgotten(tmp_path, method, **settings)
    before, after = load_learner(run), load_learner(less)
    assert after.stream.class_names == ["ant", "dog", "elk"] and after.stream.task_sizes == [1, 0, 2]
    content = b"".join(file.read_bytes() for file in less.rglob("checkpoints/*/*"))
    rows = rows_of_classes(before.learner, [before.stream.class_names.index(name) for name in GONE])
    kept = rows_of_classes(before.learner, [before.stream.class_names.index("dog")])
    assert rows and kept
    assert not any(row.numpy().tobytes() in content for row in rows), "a number of the class is left"
    assert all(row.numpy().tobytes() in content for row in kept), "the others' stay, so the search would find them"
    assert not any(name.encode() in content for name in GONE)
    images = np.concatenate([pixels(name, 20, "test") for name in ["bumblebee", "caterpillar"]])
    assert not set(GONE) & {name for names in after.predict(images, 3).names for name in names}


def stored_images(run: Path, names: list[str]) -> list[tuple[str, int]]:
    """Class and number within it of every stored image, in order; the training images are eight of each of `names`."""
    state = last_checkpoint(run)
    (memory,) = (tensor for name, tensor in state.items() if name.endswith(":memory"))
    return [(sorted(names)[position // 8], position % 8) for position in memory.tolist()]


@pytest.mark.parametrize("method", ["replay", "icarl", "bic", "derpp"])
def test_stored_images_of_the_class_are_not_stored_any_more_and_the_others_are(tmp_path, method):
    run, less = forgotten(tmp_path, method)
    names = [name for task in TASKS for name in task]
    before, after = stored_images(run, names), stored_images(less, [name for name in names if name not in GONE])
    assert {name for name, _ in before} & set(GONE), "there was something to forget"
    assert after == [image for image in before if image[0] not in GONE] != []
    content = b"".join(file.read_bytes() for file in less.rglob("checkpoints/*/*"))
    assert not any(name.encode() in content for name in GONE)
    learner, known = load_learner(less).learner, len(names) - len(GONE)
    assert len(getattr(learner, "class_means", range(known))) == known
    if method == "derpp":
        assert learner.logits.shape == (len(after), known) and learner.known.max() <= known
    config, parent = extended(less, photos(tmp_path / "fox", ["fox"])["train"])
    train(config, tmp_path, name="more", parent=parent)
    assert load_learner(only_run(tmp_path / "more")).stream.class_names[-1] == "fox"


def test_the_other_classes_are_told_apart_as_before_and_learning_goes_on(tmp_path):
    run, less = forgotten(tmp_path, "slca", readout="rgda")
    images = np.concatenate([pixels(name, 5, "test") for name in ["ant", "dog", "elk"]])
    before, after = (load_learner(path).predict(images, 1).names for path in (run, less))
    assert after == [[name] for name in ["ant", "dog", "elk"] for _ in range(5)] == before
    config, parent = extended(less, photos(tmp_path / "fox", ["fox"])["train"])
    train(config, tmp_path, name="more", parent=parent)
    assert load_learner(only_run(tmp_path / "more")).stream.class_names == ["ant", "dog", "elk", "fox"]


def test_the_accuracy_of_what_is_left_is_measured(tmp_path):
    _, less = forgotten(tmp_path, "ncm")
    (seed,) = read_results(less / "results.json").seeds
    assert seed.task_sizes == [1, 0, 2]
    assert seed.accuracy_matrix[2][1] is None and seed.accuracy_matrix[2][0] == seed.last == 100.0


@pytest.mark.parametrize("method", ["lda", "ranpac", "ease"])
def test_methods_that_keep_sums_over_classes_refuse(tmp_path, method):
    with pytest.raises(UserError, match="cannot forget single classes"):
        forgotten(tmp_path, method)
    assert not (tmp_path / "less").exists()


def test_a_shared_covariance_and_wrong_names_are_refused(tmp_path, capsys):
    with pytest.raises(UserError, match="'shared'"):
        forgotten(tmp_path, "slca", ca_cov="shared")
    run = str(only_run(tmp_path / "run"))
    assert main.main(["forget", run, "cow"]) == 2
    assert "'cow'" in capsys.readouterr().err
    assert main.main(["forget", run, *(name for task in TASKS for name in task)]) == 2
    assert "every class" in capsys.readouterr().err
