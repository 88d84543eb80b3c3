"""The estimator: scikit-learn's conventions, images in every form, from a run and from nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import trainer
from models import load_experiment
from models.inference import ContinualClassifier
from models.tools.predict import load_learner
from tests.photos import config_of, draw, pixels
from tests.run_files import only_run
from trainer import train
from utils.errors import UserError


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(trainer, "write_report", lambda result, folder: None)


def images_of(*names: str, count: int = 5, split: str = "train") -> tuple[np.ndarray, list[str]]:
    return np.concatenate([pixels(name, count, split) for name in names]), [name for name in names for _ in range(count)]


@pytest.fixture
def run(tmp_path) -> Path:
    train(config_of(tmp_path / "images", "slca", [["ant", "bee"]], bcb_lrscale=0.0, readout="rgda"), tmp_path, name="run")
    return only_run(tmp_path / "run")


def test_new_names_are_new_classes_and_known_ones_are_refined(run, tmp_path):
    model = ContinualClassifier(run, device="cpu", folder=tmp_path / "work")
    assert model.classes_.tolist() == ["ant", "bee"]
    images, labels = images_of("cat", "ant")
    assert model.partial_fit(images, labels) is model
    assert model.classes_.tolist() == ["ant", "bee", "cat"]
    assert [g.count for g in model.trained_.learner.gaussians.classes] == [8 + 5, 8, 5]
    unseen, wanted = images_of("ant", "bee", "cat", split="test")
    assert model.predict(unseen).tolist() == wanted and model.score(unseen, wanted) == 1.0
    probabilities = model.predict_proba(unseen)
    assert probabilities.shape == (15, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert (model.classes_[probabilities.argmax(axis=1)] == wanted).all()
    assert not list((tmp_path / "work").rglob("*.png")), "images are kept only as long as they are learned from"
    loaded = ContinualClassifier(model.save(tmp_path / "saved"), device="cpu")
    np.testing.assert_array_equal(loaded.predict_proba(unseen), probabilities)
    assert load_learner(tmp_path / "saved").stream.class_names == ["ant", "bee", "cat"]


def test_arrays_pictures_and_paths_are_the_same_images(run, tmp_path):
    model = ContinualClassifier(run, device="cpu")
    arrays, _ = images_of("ant", split="test")
    folder = draw(tmp_path / "test", ["ant"], 5, "test")
    forms = [list(arrays), [Image.fromarray(image) for image in arrays], [folder / "ant" / f"{i}.png" for i in range(5)]]
    found = [model.predict_proba(form) for form in forms]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_from_a_config_it_starts_from_nothing_and_labels_may_be_numbers(tmp_path, capfd):
    config = config_of(tmp_path / "unused", "ncm", [["yak"]])
    model = ContinualClassifier(config, device="cpu")
    with pytest.raises(NotFittedError):
        model.predict(images_of("ant")[0])
    for number, name in enumerate(["ant", "bee", "cat"]):
        model.partial_fit(images_of(name)[0], np.full(5, number))
    images, names = images_of("ant", "bee", "cat", split="test")
    assert model.classes_.tolist() == [0, 1, 2]
    assert model.predict(images).tolist() == [["ant", "bee", "cat"].index(name) for name in names]
    model.fit(images_of("dog")[0], ["dog"] * 5)
    assert model.classes_.tolist() == ["dog"], "fit starts anew"
    assert "test image" not in "".join(capfd.readouterr()), "there never are any"


def test_whole_numbers_may_be_floats_in_one_call_and_integers_in_another(tmp_path):
    model = ContinualClassifier(config_of(tmp_path / "unused", "ncm", [["yak"]]), device="cpu")
    model.partial_fit(images_of("ant")[0], [0] * 5)
    model.partial_fit(images_of("bee")[0], [1.0] * 5)
    assert model.predict(images_of("ant", "bee")[0]).tolist() == [0] * 5 + [1] * 5


def test_parameters_are_those_of_the_constructor_and_a_clone_knows_nothing(run):
    model = ContinualClassifier(run, device="cpu")
    model.partial_fit(*images_of("cat"))
    assert model.get_params() == {"model": run, "seed": None, "device": "cpu", "folder": None}
    assert clone(model).classes_.tolist() == ["ant", "bee"]
    assert model.set_params(device="auto").device == "auto"


def test_a_config_of_grey_arrays_takes_them_as_its_own_run_would(tmp_path):
    """Size, normalisation and transforms are those of the config's data set; a tensor has its channels first."""
    model = ContinualClassifier(load_experiment("exps/frozen_rgda_demo.json"), device="cpu")
    grey = images_of("ant", "bee", count=20)[0][..., :1].repeat(2, axis=1)[:, :28].repeat(2, axis=2)[:, :, :28]
    tensor, labels = torch.from_numpy(grey).permute(0, 3, 1, 2), ["ant"] * 20 + ["bee"] * 20
    model.partial_fit(tensor, labels, classes=["ant", "bee", "cat"])
    inputs = model.trained_.format
    assert (inputs.image_size, inputs.channels, inputs.test_transform) == (28, 1, "none")
    assert (inputs.mean, inputs.std) == (pytest.approx([0.286]), pytest.approx([0.353]))
    np.testing.assert_array_equal(model.predict_proba(tensor), model.predict_proba(grey[..., 0]))
    assert model.score(grey, labels) == 1.0


@pytest.mark.parametrize(("images", "labels", "told"), [
    (np.zeros((1, 16, 16, 3), np.uint8), [0.5], "Unknown label type"), (np.zeros((1, 16, 16, 3), np.uint8), [None], "Unknown label type"),
    (np.zeros((1, 16, 16, 3)), ["a"], "got torch.float64"), (np.zeros((2, 16, 16, 3), np.uint8), [["a"], ["b"]], "one label for each"),
    (np.zeros((2, 16, 16, 3), np.uint8), ["a"], "got 2 images and 1 labels"),
    (np.zeros((1, 16, 16, 3), np.uint8), ["../a"], "what can name a folder"),
    (["nowhere.png"], ["a"], "nowhere.png does not exist")])
def test_wrong_images_and_labels_are_told(run, images, labels, told):
    with pytest.raises(UserError, match=told):
        ContinualClassifier(run, device="cpu").partial_fit(images, labels)
