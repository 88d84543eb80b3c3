"""Predicting with a finished run, and exporting it."""

import csv
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import trainer
from main import main
from models.tools.export import export
from models.tools.predict import load_learner
from tests.run_files import only_run, tiny_config
from trainer import train
from utils.data.registry import load_dataset
from utils.errors import UserError

METHODS = ("slca", "slca_pp", "icarl", "ncm", "ranpac", "bic")


@pytest.fixture(scope="module", params=METHODS)
def run(request, tmp_path_factory):
    """A finished tiny run of every method: (folder, result)."""
    out = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "write_report", lambda result, folder: None)
        result = train(tiny_config(model_name=request.param, epochs=1), out, name="run")
    return only_run(out / "run"), result


@pytest.fixture(scope="module")
def slcapp(tmp_path_factory):
    out = tmp_path_factory.mktemp("slcapp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "write_report", lambda result, folder: None)
        train(tiny_config(model_name="slca_pp", epochs=1, seed=[1, 2], keep_checkpoints="all"), out, name="run")
    return only_run(out / "run")


def test_predictions_of_the_test_images_have_the_accuracy_that_the_run_reported(run):
    folder, result = run
    _, test, names = load_dataset(tiny_config().dataset, "data")
    found = load_learner(folder).predict(test.images, top_k=2)
    right = [labels[0] == label for labels, label in zip(found.labels, test.labels.tolist(), strict=True)]
    assert 100 * sum(right) / len(right) == pytest.approx(result.seeds[0].last)
    assert found.names == [[names[label] for label in row] for row in found.labels]
    assert found.probabilities.shape == (len(right), 2)
    assert (found.probabilities[:, 0] >= found.probabilities[:, 1]).all() and (found.probabilities.sum(dim=1) <= 1 + 1e-5).all()


def test_the_exported_program_gives_the_scores_of_the_run(slcapp, tmp_path):
    trained = load_learner(slcapp)
    assert export(trained, tmp_path / "model.pt2") <= 1e-4
    extra = {"slca.json": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=extra).module()
    _, test, _ = load_dataset(tiny_config().dataset, "data")
    pixels = torch.from_numpy(test.images).permute(0, 3, 1, 2).float() / 255
    classes = json.loads(extra["slca.json"])["classes"]
    best = [classes[i] for i in program(pixels).argmax(dim=1)]
    assert best == [row[0] for row in trained.predict(test.images, top_k=1).names]


def test_predict_reads_files_pil_images_and_arrays_alike(slcapp, tmp_path):
    _, test, _ = load_dataset(tiny_config().dataset, "data")
    arrays = list(test.images[:6])
    files = []
    for i, array in enumerate(arrays):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(array).save(files[-1])
    trained = load_learner(slcapp)
    found = [trained.predict(images).probabilities for images in (files, [Image.open(f) for f in files], arrays, np.stack(arrays))]
    assert all(torch.allclose(found[0], other, atol=1e-6) for other in found[1:])


def test_seed_and_task_choose_the_checkpoint(slcapp):
    images = np.zeros((1, 16, 16, 3), dtype=np.uint8)
    first, second = (load_learner(slcapp, seed=seed) for seed in (1, 2))
    assert first.stream.class_order != second.stream.class_order
    assert load_learner(slcapp, after_task=1).predict(images).probabilities.shape == (1, 2)
    with pytest.raises(UserError, match="seed: got 9, allowed: 1, 2"):
        load_learner(slcapp, seed=9)
    with pytest.raises(UserError, match="no checkpoint after task 7"):
        load_learner(slcapp, after_task=7)
    with pytest.raises(UserError, match="uint8"):
        first.predict(np.zeros((1, 16, 16, 3)))


def test_predict_command_prints_and_writes_top_classes_and_names_bad_files(slcapp, tmp_path, capsys):
    folder = tmp_path / "images" / "inner"
    folder.mkdir(parents=True)
    Image.fromarray(np.full((40, 30, 3), 200, dtype=np.uint8)).save(folder / "grey.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 not a picture")
    target = tmp_path / "out.csv"
    assert main(["predict", str(slcapp), str(tmp_path / "images"), "--top", "3", "--csv", str(target), "--device", "cpu"]) == 0
    told = capsys.readouterr()
    assert "left out" in told.err and "broken.jpg" in told.err
    (row,) = csv.DictReader(io.StringIO(target.read_text()))
    assert row["file"].endswith("grey.png") and row["class_1"].startswith("pattern ") and 0 < float(row["probability_3"]) < 1
    assert f"{row['class_1']} {100 * float(row['probability_1']):.1f}%" in told.out


@pytest.mark.parametrize(("arguments", "message"), [
    (["predict", "no_such_run", "."], "there is no run in no_such_run"),
    (["export", "{run}", "model.txt"], "allowed: a name that ends in .pt2"),
    (["predict", "{run}", "no_such_folder"], "no_such_folder does not exist"),
    (["predict", "{run}", "{run}", "--top", "0"], "top_k|no image files"),
])
def test_mistakes_are_told(arguments, message, slcapp, capsys):
    assert main([part.format(run=slcapp) for part in arguments]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_onnx_gives_the_scores_of_the_run_or_says_what_is_missing(slcapp, tmp_path):
    trained = load_learner(slcapp, device="cpu")
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match="pip install onnx onnxscript"):
            export(trained, tmp_path / "model.onnx")
    else:
        assert export(trained, tmp_path / "model.onnx") <= 1e-4
