"""The command line as a user types it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from main import main

PROJECT = Path(__file__).parent.parent
TINY = {"model_name": "slca_tiny", "init_cls": 2, "increment": 2, "epochs": 1, "batch_size": 8, "seed": [1, 2], "ca_epochs": 1,
        "ca_samples": 8,
        "dataset": {"name": "tiny", "layout": "synthetic", "num_classes": 5, "image_size": 16, "train_per_class": 8, "test_per_class": 4,
                    "train_transform": "none"},
        "convnet_type": {"timm": "vit_tiny_patch16_224",
                         "args": {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}},
        "pretrained": False, "device": "cpu"}


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(TINY))
    return path


def call(*arguments, cwd=PROJECT):
    return subprocess.run([sys.executable, str(PROJECT / "main.py"), *map(str, arguments)], capture_output=True, text=True,
                          cwd=cwd, check=False)


def test_one_command_trains_and_writes_every_file(config, tmp_path, capsys):
    assert main(["--config", str(config), "--out", str(tmp_path / "logs")]) == 0
    printed = capsys.readouterr().out
    assert "Last accuracy (%)" in printed and "±" in printed and "report.html" in printed
    run = next((tmp_path / "logs" / "tiny").iterdir())
    results = json.loads((run / "results.json").read_text())
    assert [seed["seed"] for seed in results["seeds"]] == [1, 2]
    assert results["seeds"][0]["task_sizes"] == [2, 2, 1]
    assert results["summary"]["last"]["std"] is not None
    assert {"config", "environment", "seeds", "summary"} <= set(results)


def test_test_only_prints_the_table_that_the_run_printed(config, tmp_path, capsys):
    main(["--config", str(config), "--out", str(tmp_path / "logs")])
    trained = capsys.readouterr().out
    assert main(["--config", str(config), "--out", str(tmp_path / "logs"), "--test_only"]) == 0
    tested = capsys.readouterr().out
    table = tested[tested.index("SLCA on tiny"):].strip()
    assert "Last accuracy (%)" in table and table in trained


def test_set_and_device_win_over_the_file(config, tmp_path, capsys):
    assert main(["--config", str(config), "--set", "epochs=0", "seed=7", "--device", "cpu", "--out", str(tmp_path)]) == 0
    results = json.loads(next((tmp_path / "tiny").glob("*/results.json")).read_text())
    assert results["config"]["epochs"] == 0 and [s["seed"] for s in results["seeds"]] == [7]


def test_compare_writes_one_table_for_several_runs(config, tmp_path, capsys):
    out = tmp_path / "logs"
    main(["--config", str(config), "--out", str(out)])
    config.with_name("ft.json").write_text(json.dumps({**TINY, "model_name": "finetune"}))
    main(["--config", str(config.with_name("ft.json")), "--out", str(out)])
    capsys.readouterr()
    assert main(["compare", str(out / "tiny"), str(out / "ft"), "--out", str(out / "both")]) == 0
    printed = capsys.readouterr().out
    assert "SLCA" in printed and "Seq FT" in printed
    for suffix in ("md", "csv", "tex", "png", "html"):
        assert (out / "both" / f"comparison.{suffix}").stat().st_size > 0


@pytest.mark.parametrize("what", ["methods", "datasets", "backbones"])
def test_list_names_what_a_config_may_use(what, capsys):
    assert main(["list", what]) == 0
    assert {"methods": "slca", "datasets": "cifar100_224", "backbones": "vit-b-p16-mocov3"}[what] in capsys.readouterr().out


def test_a_mistake_is_one_message_without_traceback_and_exit_code_2(config):
    config.write_text(json.dumps({**TINY, "epocs": 3}))
    done = call("--config", config)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "did you mean 'epochs'" in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_wrong_config_among_several_is_told_before_anything_runs(config, tmp_path):
    config.with_name("bad.json").write_text("{")
    done = call("--config", config, config.with_name("bad.json"), "--out", tmp_path / "logs")
    assert done.returncode == 2 and not (tmp_path / "logs").exists()


def test_the_demo_runs_shortened_from_another_folder(tmp_path):
    done = call("--config", PROJECT / "exps" / "slca_demo.json", "--set", "seed=0", "epochs=1", "ca_epochs=1", "--out", tmp_path,
                cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads(next((tmp_path / "slca_demo").glob("*/results.json")).read_text())
    assert results["seeds"][0]["last"] > 30  # chance is 10
    assert results["environment"]["weights"]["source"] == "vit_demo_glyphs.safetensors"
