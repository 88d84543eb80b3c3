"""The lines of docs/deploy.md, run as they stand there, answer as the run itself does."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import trainer
from models.tools.export import export, facts
from models.tools.predict import TrainedLearner, load_learner
from tests.photos import config_of, draw
from tests.run_files import only_run
from utils.errors import UserError
from utils.images.recipes import RECIPES

DOC = Path(__file__).parents[3] / "docs" / "deploy.md"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedLearner:
    """A run whose test images are resized by their shorter side and cropped."""
    out = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "write_report", lambda result, folder: None)
        tasks, settings = [["ant", "bee"], ["c<a>t"]], {"bcb_lrscale": 0.0, "epochs": 1, "test_transform": "resize256_crop224"}
        trainer.train(config_of(out / "images", "slca", tasks, **settings), out, name="run")
    return load_learner(only_run(out / "run"), device="cpu")


def lines_of(heading: str) -> str:
    return re.search(rf"## {re.escape(heading)}\n.*?```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)[1]


def photos(folder: Path) -> list[Path]:
    """Of a known and of an unknown class, neither square nor of the network's size."""
    files = [draw(folder / name, [name], 1, "test") / name / "0.png" for name in ("c<a>t", "yak")]
    for file in files:
        Image.open(file).resize((37, 29), Image.Resampling.BICUBIC).save(file)
    return files


@pytest.mark.parametrize("file", ["model.pt2", "model.onnx"])
def test_the_lines_of_the_docs_answer_as_the_run_does_and_need_nothing_of_the_project(file, trained, tmp_path, capsys, monkeypatch):
    if file.endswith("onnx"):
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package, reason="pip install onnx onnxscript onnxruntime: no ONNX file is written and run here")
    export(trained, tmp_path / file)
    code = lines_of(file)
    for photo in photos(tmp_path / "photos"):
        expected = trained.predict([photo], 1, known_share=0.95)
        (tmp_path / "photo.png").write_bytes(photo.read_bytes())
        if file.endswith("onnx"):  # torch takes seconds to start, so its lines run here
            done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120)
            printed = done.stdout
        else:
            monkeypatch.chdir(tmp_path)
            exec(code, {})
            printed = capsys.readouterr().out
        name, probability, *unknown = printed.split()
        assert name == expected.names[0][0] and bool(unknown) == expected.unknown[0], printed
        assert float(probability) == pytest.approx(expected.probabilities.item(), abs=2e-3)


def test_the_lines_import_nothing_of_the_project():
    for heading in ("model.onnx", "model.pt2"):
        imported = re.findall(r"^(?:import|from) (.*?)(?: import .*)?$", lines_of(heading), re.MULTILINE)
        assert {name for line in imported for name in line.split(", ")} <= {"json", "numpy as np", "onnxruntime", "torch", "PIL"}


def test_the_facts_describe_every_test_transform(trained, monkeypatch):
    for name, (resize, keep, crop) in {"none": (16, False, "none"), "resize224": (16, False, "none"),
                                       "resize256_crop224_bilinear": (18, True, "center")}.items():
        monkeypatch.setattr(trained, "format", replace(trained.format, test_transform=name))
        found = facts(trained)
        assert (found["resize"], found["keep_aspect"], found["crop"]) == (resize, keep, crop)
        assert found["interpolation"] == RECIPES[name].interpolation


def test_without_its_packages_the_command_that_installs_them_is_told(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"pip install .*onnx.*onnxscript"):
        export(trained, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
