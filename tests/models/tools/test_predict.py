"""Predicting with a finished run, and exporting it."""

import csv
import io
import json
import os
import re
import shutil
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import trainer
from main import main
from models.tools.export import export
from models.tools.predict import load_learner
from tests.photos import config_of, draw
from tests.run_files import only_run, tiny_config
from trainer import train
from utils.data.registry import load_dataset
from utils.errors import UserError
from utils.images.store import FileStore

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
    best = [classes[i] for i in program(pixels)[0].argmax(dim=1)]
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


def photos(folder: Path, count: int, size: tuple[int, int]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (size[0] + i, size[1], 3), dtype=np.uint8)).save(folder / f"{i}.bmp")
    return [folder / f"{i}.bmp" for i in range(count)]


def test_images_reach_the_network_as_the_runs_own_test_transform_makes_them(slcapp, tmp_path):
    trained, files = load_learner(slcapp), photos(tmp_path, 5, (40, 33))
    expected = trained.transform(FileStore(files).get(np.arange(5)), torch.zeros(5, trained.transform.draws))
    assert torch.equal(trained.inputs(files), expected)
    assert torch.equal(torch.cat([trained.inputs([file]) for file in files]), expected)
    whole = trained.predict(files).probabilities
    assert torch.allclose(trained.predict_cut([trained.cut(file) for file in files]).probabilities, whole, atol=1e-6)
    assert trained.predict([]).names == [] and trained.predict_cut([]).names == []


def test_of_a_batch_of_photos_one_at_a_time_is_in_memory(slcapp, tmp_path):
    files = photos(tmp_path / "photos", 8, (600, 500))
    trained = load_learner(slcapp)
    assert trained.batch_size >= 8
    for work in (lambda: trained.predict(files), lambda: main(["predict", str(slcapp), str(tmp_path / "photos"), "--csv", os.devnull])):
        tracemalloc.start()
        work()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 * 600 * 500 * 3, "bytes of decoded images"


def predicted(target: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(target.read_text(encoding="utf-8"))))


@pytest.mark.skipif(sys.platform == "darwin" or os.name != "posix", reason="file systems there take UTF-8 names alone")
@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_names_that_are_not_utf8_and_narrow_terminals_lose_no_prediction(slcapp, tmp_path, monkeypatch, encoding):
    (first,) = photos(tmp_path / "in", 1, (20, 20))
    names = [b"caf\xe9.png", "写真.png".encode(), b"a\x1b[31m.png", b"\xff\xfe.png", b"line\nfeed.png"]
    for name in names:
        os.link(first, os.fsencode(tmp_path / "in") + b"/" + name)
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    assert main(["predict", str(slcapp), str(tmp_path / "in"), "--csv", str(tmp_path / "out.csv"), "--device", "cpu"]) == 0
    sys.stdout.flush()
    files = [row["file"] for row in predicted(tmp_path / "out.csv")]
    assert len(files) == 6 and any(r"caf\xe9.png" in file for file in files)
    shown = raw.getvalue()
    assert rb"caf\xe9" in shown and b"\x1b" not in shown and b"6 of 6 images" in shown


def test_a_closed_terminal_loses_no_prediction(slcapp, tmp_path, monkeypatch):
    photos(tmp_path / "in", 2, (20, 20))

    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")
    monkeypatch.setattr(sys, "stdout", Gone())
    assert main(["predict", str(slcapp), str(tmp_path / "in"), "--csv", str(tmp_path / "out.csv")]) == 0
    assert len(predicted(tmp_path / "out.csv")) == 2


def test_the_last_output_is_kept_unless_its_name_is_given(slcapp, tmp_path, capsys):
    photos(tmp_path / "in", 2, (20, 20))
    run = shutil.copytree(slcapp, tmp_path / "run")
    for number in range(3):
        assert main(["predict", str(run), str(tmp_path / "in" / f"{number % 2}.bmp")]) == 0
    assert [predicted(run / f"predictions{end}.csv")[0]["file"][-5:] for end in ("", "_2", "_3")] == ["0.bmp", "1.bmp", "0.bmp"]
    assert "predictions_3.csv" in capsys.readouterr().out
    for number in range(2):
        assert main(["predict", str(run), str(tmp_path / "in" / f"{number}.bmp"), "--csv", str(tmp_path / "same.csv")]) == 0
    assert predicted(tmp_path / "same.csv")[0]["file"].endswith("1.bmp")


def test_a_table_that_cannot_be_written_is_told_after_the_predictions(slcapp, tmp_path, capsys):
    photos(tmp_path / "in", 2, (20, 20))
    (tmp_path / "file").write_text("x")
    assert main(["predict", str(slcapp), str(tmp_path / "in"), "--csv", str(tmp_path / "file" / "out.csv")]) == 2
    told = capsys.readouterr()
    assert "cannot be written" in told.err and "--csv" in told.err and "1.bmp" in told.out


@pytest.mark.skipif(os.name != "posix", reason="pipes")
def test_pipes_and_devices_are_never_waited_for(slcapp, tmp_path, capsys):
    photos(tmp_path / "in", 1, (20, 20))
    os.mkfifo(tmp_path / "in" / "pipe.png")
    assert main(["predict", str(slcapp), str(tmp_path / "in"), "--csv", str(tmp_path / "out.csv")]) == 0
    assert len(predicted(tmp_path / "out.csv")) == 1
    for place in (tmp_path / "in" / "pipe.png", "/dev/zero"):
        assert main(["predict", str(slcapp), str(place)]) == 2
        assert "a pipe or a device" in capsys.readouterr().err
    with pytest.raises(UserError, match="a pipe or a device"):
        load_learner(slcapp).predict([tmp_path / "in" / "pipe.png"])


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


def test_images_of_no_known_class_are_told_by_methods_that_keep_gaussians(tmp_path, capsys):
    train(config_of(tmp_path / "images", "slca", [["ant", "bee"], ["cat"]], bcb_lrscale=0.0), tmp_path, name="run")
    run = only_run(tmp_path / "run")
    for name in ("cat", "yak"):
        draw(tmp_path / "asked", [name], 3, "test")
    assert main(["predict", str(run), str(tmp_path / "asked"), "--unknown", "0.99", "--top", "1"]) == 0
    rows = predicted(run / "predictions.csv")
    assert all(list(row) == ["file", "class_1", "probability_1", "unknown"] for row in rows)
    told = {Path(row["file"]).parent.name: row["unknown"] for row in rows}
    assert told == {"cat": "0", "yak": "1"}
    assert capsys.readouterr().out.count("unknown, most like") == 3
    assert main(["predict", str(run), str(tmp_path / "asked"), "--unknown", "0.9", "--unknown_score", "energy"]) == 0
    assert {row["unknown"] for row in predicted(run / "predictions_2.csv")} <= {"0", "1"}
    assert main(["predict", str(run), str(tmp_path / "asked"), "--unknown", "--unknown_score", "colour"]) == 2
    assert "allowed: distance, energy" in capsys.readouterr().err
    assert main(["predict", str(run), str(tmp_path / "asked"), "--unknown", "1.5"]) == 2
    assert "above 0 and below 1" in capsys.readouterr().err
    train(config_of(tmp_path / "others", "ncm", [["ant", "bee"]]), tmp_path, name="means")
    assert main(["predict", str(only_run(tmp_path / "means")), str(tmp_path / "asked"), "--unknown"]) == 2
    assert "keeps no Gaussians" in capsys.readouterr().err
