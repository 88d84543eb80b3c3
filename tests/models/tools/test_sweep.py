"""A sweep of local processes, from the command line to the best config."""

import json
from pathlib import Path

import pytest

from main import main
from models.registry import load_experiment
from tests.run_files import only_run
from trainer import train
from utils.sweep import queue
from utils.sweep.status import lines_of

TINY = {"model_name": "finetune", "init_cls": 2, "increment": 2, "epochs": 1, "batch_size": 8, "seed": 1, "val_fraction": 0.25,
        "dataset": {"name": "tiny", "layout": "synthetic", "num_classes": 4, "image_size": 16, "train_per_class": 8, "test_per_class": 4,
                    "train_transform": "none"},
        "convnet_type": {"timm": "vit_tiny_patch16_224",
                         "args": {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}},
        "pretrained": False, "device": "cpu"}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("sweep") / "tiny.json"
    path.write_text(json.dumps(TINY))
    return path


@pytest.fixture(scope="module")
def swept(config):
    pytest.importorskip("submitit")
    folder = config.parent / "out"
    words = ["sweep", "--config", str(config), "--set", "torch_seed=[1,2]", "--on", "local", "--jobs", "2", "--out", str(folder)]
    assert main(words) == 0
    return folder, words


def test_a_sweep_ends_with_a_table_and_a_config_that_runs(swept):
    folder, _ = swept
    table = json.loads((folder / "table.json").read_text())
    assert [row["state"] for row in table] == ["done", "done"] and table[0]["last_validation_mean"] >= table[1]["last_validation_mean"]
    best = load_experiment(folder / "best.json")
    assert best.torch_seed == table[0]["values"]["torch_seed"] and best.seeds == [1]


def test_the_table_has_the_figures_of_a_single_run(swept, config, tmp_path):
    folder, _ = swept
    assert main(["--config", str(config), "--set", "torch_seed=2", "--out", str(tmp_path)]) == 0
    single = json.loads((only_run(tmp_path / "tiny") / "results.json").read_text())["summary"]
    (row,) = [row for row in json.loads((folder / "table.json").read_text()) if row["values"] == {"torch_seed": 2}]
    for key in ("last", "last_validation", "average_incremental", "forgetting"):
        assert row[f"{key}_mean"] == single[key]["mean"]


def test_the_same_command_runs_nothing_again_and_another_one_is_refused(swept, capsys):
    folder, words = swept
    jobs = sorted((folder / "jobs").iterdir())
    written = [file.stat().st_mtime_ns for file in jobs]
    assert main(words) == 0
    assert "2 runs, 2 of them done" in capsys.readouterr().out and [file.stat().st_mtime_ns for file in jobs] == written
    assert main([*words, "--seeds", "5"]) == 2
    assert "holds another sweep (seeds differ)" in capsys.readouterr().err


def test_a_search_tries_its_trials_and_is_extended_by_a_larger_number(config, tmp_path, monkeypatch, capsys):
    pytest.importorskip("submitit")

    def start_here(place, name, command, folder):  # in this process, which starts no other
        train(load_experiment(command.command[3]), command.command[5], name=name, resume=True)
        Path(command.exit_file).write_text("0")
        return {"id": "1", "on": "local", "host": "here", "log": str(folder / name)}
    monkeypatch.setattr("utils.sweep.places.Place.start", start_here)
    monkeypatch.setattr("models.tools.sweep.write_pictures", lambda folder, study: [])
    monkeypatch.setitem(queue.LOOK_SECONDS, "local", 0.0)
    words = ["sweep", "--config", str(config), "--set", 'torch_seed={"low":1,"high":99}', "--jobs", "1", "--out", str(tmp_path)]
    for trials in (1, 2):
        assert main([*words, "--search", str(trials)]) == 0
        table = json.loads((tmp_path / "table.json").read_text())
        assert sorted(row["point"] for row in table) == [f"trial-{n}" for n in range(trials)]
        assert all(row["state"] == "done" and row["last_validation_mean"] is not None for row in table)
    assert load_experiment(tmp_path / "best.json").torch_seed == table[0]["values"]["torch_seed"]
    assert "trial-1: tiny, torch_seed=" in capsys.readouterr().out


def test_status_lists_its_runs(swept):
    folder, _ = swept
    assert [(line.name, line.state, line.progress) for line in lines_of(folder)] == [
        (f"runs/tiny+torch_seed-{n}+seed-1", "done", "2 of 2") for n in (1, 2)]


@pytest.mark.parametrize(("words", "told"), [
    (["--set", "val_fraction=0"], "never chooses by the test images"), (["--set", "lr=[0.1,-1]"], "lr"),
    (["--set", "epocs=[1,2]"], "'epochs'"),
    (["--search", "0"], "--search: got 0"), (["--storage", "sqlite:///x"], "belongs to --search"), (["--time", "soon"], "--time"),
    (["--jobs", "0"], "--jobs: got 0"), (["--slurm", "mem=1G"], "belongs to --on slurm")])
def test_a_mistake_is_told_before_anything_runs(config, tmp_path, capsys, words, told):
    assert main(["sweep", "--config", str(config), "--out", str(tmp_path / "out"), *words]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_number_of_threads_is_left_to_each_run(config, tmp_path, monkeypatch):
    prepared = []
    monkeypatch.setattr("main.prepare_openmp", lambda: prepared.append(True))
    words = ["--config", str(tmp_path / "none.json"), "--out", str(tmp_path / "out")]
    assert main(["sweep", *words]) == main([*words, "--on", "local"]) == 2 and not prepared
    assert main(words) == 2 and prepared


def test_how_runs_go_side_by_side_needs_a_place(config, tmp_path, capsys):
    assert main(["--config", str(config), "--jobs", "2", "--out", str(tmp_path)]) == 2
    assert "add --on local" in capsys.readouterr().err
