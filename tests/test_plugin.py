"""The worked examples of docs/add_a_method.md: one file, no edit elsewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from models.registry import load_plugin
from utils.errors import UserError

PROJECT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (PROJECT / "docs" / "add_a_method.md").read_text(), flags=re.DOTALL)
METHOD, BACKBONE, DATA = BLOCKS


@pytest.fixture
def plugin(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("\n".join(BLOCKS))
    return file


def call(*arguments, cwd=PROJECT):
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.mark.timeout(300)
def test_the_worked_example_trains_on_its_data_set_and_predicts_nothing_without_the_plugin(plugin, tmp_path):
    assert len(METHOD.splitlines()) <= 32
    config = tmp_path / "l2sp.json"
    config.write_text('''{"model_name": "l2sp", "dataset": "two_greys", "init_cls": 1, "increment": 1, "epochs": 1, "batch_size": 16,
        "pretrained": false, "l2sp_alpha": 0.5, "device": "cpu", "seed": 0, "convnet_type": {"timm": "vit_tiny_patch16_224",
        "args": {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "in_chans": 1}}}''')
    done = call("main.py", "--plugin", plugin, "--config", config, "--out", tmp_path / "logs")
    assert done.returncode == 0, done.stderr
    assert "L2-SP" in done.stdout and list((tmp_path / "logs" / "l2sp").glob("*/results.json"))
    alone = call("main.py", "--config", config, "--out", tmp_path / "logs")
    assert alone.returncode == 2 and "model_name: got 'l2sp'" in alone.stderr


@pytest.mark.timeout(300)
def test_the_shared_tests_run_on_a_plugin(plugin):
    found = call("-m", "pytest", "-q", "tests/models/test_contract.py", "--plugin", plugin, "-k", "deterministic or settings or moved")
    assert found.returncode == 0 and found.stdout.startswith("... "), found.stdout + found.stderr


@pytest.mark.parametrize(("file", "told"), [("notes.txt", "is no Python file; name one that ends in .py"), ("loop.py", "does not exist"),
                                            ("~nobody/mine.py", "does not exist")])
def test_what_is_no_plugin_is_one_sentence(file, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").touch()
    Path("loop.py").symlink_to("loop.py")
    with pytest.raises(UserError, match=told):
        load_plugin(file)
