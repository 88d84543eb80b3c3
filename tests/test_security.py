"""Nothing that is read can run code, and nothing is written outside the folders that are there for it."""

import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import trainer
from convs.backbones import build_backbone, describe
from convs.weights import load_weights
from main import main
from models.tools.predict import load_learner
from tests.processes import write_config
from tests.run_files import only_run, tiny_config
from tests.support import MICRO_VIT
from utils.config import parse_config
from utils.data.registry import load_dataset
from utils.errors import UserError
from utils.report.results import read_results
from utils.run.run_folder import RunFolder, experiment_folder


class Bomb:
    """A pickle of this makes a folder when it is loaded."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


@pytest.fixture
def bomb(tmp_path):
    bomb = Bomb(tmp_path / "it_ran")
    yield bomb
    assert not bomb.proof.exists(), "a planted pickle was executed"


def plant(bomb: Bomb, file: Path) -> Path:
    """The bomb in the form that a careless reader of this kind of file would load."""
    if file.suffix == ".npz":
        with zipfile.ZipFile(file, "w") as archive:
            for name in ("x_train", "y_train", "x_test", "y_test", "cls", "Transformer/encoderblock_0/x"):
                array = np.empty(1, dtype=object)
                array[0] = bomb
                with archive.open(f"{name}.npy", "w") as stream:
                    np.save(stream, array, allow_pickle=True)
    elif file.suffix in (".pth", ".tar", ".pt"):
        torch.save({"state_dict": {"weight": bomb}}, file)
    else:
        file.write_bytes(pickle.dumps(bomb))
    return file


def test_the_bomb_works(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "it_ran")))
    assert (tmp_path / "it_ran").is_dir()


@pytest.mark.parametrize("name", ["w.npz", "w.pth", "w.pth.tar", "w.pt", "w.bin", "w.safetensors"])
@pytest.mark.parametrize("bare", [False, True])
def test_a_pickle_in_a_file_of_weights_is_refused(name, bare, bomb, tmp_path):
    file = tmp_path / name
    if bare:
        file.write_bytes(pickle.dumps(bomb))
    else:
        plant(bomb, file)
    model = build_backbone(describe("vit_tiny_patch16_224", MICRO_VIT), pretrained=False).model
    with pytest.raises(UserError, match=rf"{name}: (refused|not a readable)"):
        load_weights(model, file)


@pytest.mark.parametrize("bare", [False, True])
def test_a_pickle_in_a_data_set_is_refused(bare, bomb, tmp_path):
    file = tmp_path / "data.npz"
    if bare:
        file.write_bytes(pickle.dumps(bomb))
    else:
        plant(bomb, file)
    with pytest.raises(UserError, match=r"data\.npz"):
        load_dataset(tiny_config(dataset={"name": "x", "layout": "npz", "root": str(file)}).dataset)


@pytest.mark.parametrize("file", ["x/labels.txt", "x/train.json", "x/classes.csv"])
def test_a_pickle_in_a_list_of_images_is_refused(file, bomb, tmp_path):
    path = tmp_path / file
    path.parent.mkdir()
    plant(bomb, path)
    lists = {"name": "x", "layout": "lists", "root": str(tmp_path), "train": str(path), "test": str(path)}
    with pytest.raises(UserError):
        load_dataset(tiny_config(dataset=lists).dataset)


@pytest.mark.parametrize(("name", "files"), [
    ("cifar10", ["cifar-10-batches-py/data_batch_1", "cifar-10-batches-py/batches.meta", "cifar-10-python.tar.gz"]),
    ("fashion_mnist", ["FashionMNIST/processed/training.pt", "FashionMNIST/processed/test.pt"]),
])
def test_a_pickle_in_place_of_a_known_data_set_is_refused(name, files, bomb, tmp_path, monkeypatch):
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        plant(bomb, tmp_path / file)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(UserError):
        load_dataset(name, str(tmp_path))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "write_report", lambda result, folder: None)
        trainer.train(tiny_config(epochs=1), out, name="tiny")
    return out


@pytest.mark.parametrize("file", ["weights.safetensors", "state.safetensors", "checkpoint.json"])
def test_a_pickle_in_a_checkpoint_is_passed_over(file, finished, bomb, tmp_path, caplog):
    shutil.copytree(finished, tmp_path / "out")
    run = only_run(tmp_path / "out" / "tiny")
    for checkpoint in (run / "seed1993" / "checkpoints").iterdir():
        (checkpoint / file).write_bytes(pickle.dumps(bomb))
    with pytest.raises(UserError, match="no checkpoint"):
        load_learner(run)
    assert "is damaged" in caplog.text


def test_a_pickle_in_a_runs_own_files_or_a_config_is_refused(finished, bomb, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "out")
    run = only_run(tmp_path / "out" / "tiny")
    with pytest.raises(UserError):
        read_results(plant(bomb, run / "results.json"))
    plant(bomb, run / "run.json")
    assert RunFolder(run).status() == {}
    assert main(["--config", str(plant(bomb, tmp_path / "config.json"))]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("args", [{"checkpoint_path": "evil.pth"}, {"pretrained_cfg_overlay": {"file": "evil.pth"}},
                                  {"cache_dir": "/elsewhere"}, {"pretrained_cfg": {"url": "https://example.org/evil.pth"}},
                                  {"pretrained": True}])
def test_a_config_cannot_make_timm_load_or_write_on_its_own(args):
    with pytest.raises(UserError, match=r"convnet_type\.args: got"):
        build_backbone(describe("vit_tiny_patch16_224", {**MICRO_VIT, **args}), pretrained=False)


@pytest.mark.parametrize("name", ["..", "../x", "a/../../x", "/etc/x", "...", "slca/../../../evil", ".hidden", "", "x" * 400,
                                  "\x00", "con\nfig"])
def test_an_experiments_name_stays_inside_the_output_folder(name, tmp_path):
    folder = experiment_folder(tmp_path, name)
    assert folder.parent == tmp_path and folder.resolve().parent == tmp_path.resolve() and folder.name


def test_a_run_writes_under_its_output_folder_alone(tmp_path, monkeypatch):
    work = tmp_path / "work"
    work.mkdir()
    for name in ("exps", "convs"):
        os.symlink(Path(name).resolve(), work / name)
    monkeypatch.chdir(work)
    hostile = tiny_config(epochs=1, model_name="slca_/../../evil", model_postfix="../../evil", prefix="/evil", notes="../evil",
                          save_before_ca=True, data_root="../data")
    before = {p for p in tmp_path.rglob("*")}
    trainer.train(hostile, work / "out")
    main(["--config", str(write_config(hostile, work / "...json")), "--out", str(work / "out")])
    new = {p for p in tmp_path.rglob("*")} - before - {work / "...json"}
    assert new and all((work / "out") in (p, *p.parents) for p in new), sorted(map(str, new))[:5]


def test_the_report_escapes_what_people_wrote(tmp_path):
    script = "<script>alert(1)</script>"
    names = [f"{script}{i}" for i in range(2)]
    images = np.zeros((4, 16, 16, 3), dtype=np.uint8)
    labels = np.array([0, 1, 0, 1])
    np.savez(tmp_path / "d.npz", x_train=images, y_train=labels, x_test=images, y_test=labels, classes=np.array(names))
    dataset = {"name": script, "layout": "npz", "root": str(tmp_path / "d.npz"), "image_size": 16}
    config = tiny_config(epochs=1, notes=script, dataset=dataset)
    trainer.train(config, tmp_path / "out", name=script)
    page = next((tmp_path / "out").rglob("report.html")).read_text()
    assert script not in page and "&lt;script&gt;" in page


def test_a_config_in_results_is_read_back_as_plain_values(finished):
    content = json.loads((only_run(finished / "tiny") / "results.json").read_text())
    assert parse_config(content["config"]).lr == 0.01
