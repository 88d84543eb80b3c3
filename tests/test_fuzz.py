"""Any config, however wrong, ends in one paragraph that names the key, or in a valid dry run: no traceback, no folder."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from main import main
from models.tools.dry_run import describe_run
from tests.run_files import tiny_config
from utils.config import Config, DatasetSpec, parse_config
from utils.errors import UserError

EXPS = Path("exps")
STARTS = [json.loads(path.read_text()) for path in sorted(EXPS.glob("*_demo.json"))[:6]]
STARTS += [tiny_config(model_name=name).model_dump(mode="json") for name in ("slca", "slca_pp")]
SMALL = {"timm": "vit_tiny_patch16_224", "args": {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}}
KEYS = sorted(Config.model_fields)

ODD = st.sampled_from(["", "auto", "slca", "cpu", "\u0000", "naïve ✓ 日本語", "../../etc/passwd", "cuda:99", "-1", "1e999"])
NUMBERS = st.integers(-3, 300) | st.integers(-10**30, 10**30) | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=20) | ODD
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
                      max_leaves=8)
DATASETS = st.dictionaries(st.sampled_from(sorted(DatasetSpec.model_fields)), VALUES, max_size=4)
TIMM_ARGS = ["img_size", "patch_size", "embed_dim", "depth", "num_heads", "in_chans", "checkpoint_path", "qkv_bias"]
BACKBONES = st.fixed_dictionaries(
    {"timm": st.sampled_from(["vit_tiny_patch16_224", "resnet10t", "no_such_model", ""]) | SCALARS},
    optional={"args": st.dictionaries(st.sampled_from(TIMM_ARGS), st.integers(-2, 64) | SCALARS, max_size=3), "weights": SCALARS})


@st.composite
def mutated(draw):
    """A valid config with a few keys changed, removed or added."""
    config = dict(draw(st.sampled_from(STARTS)), convnet_type=SMALL)
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["change", "change", "change", "remove", "add", "dataset", "backbone", "misspell"]))
        if kind == "change":
            config[draw(st.sampled_from(KEYS))] = draw(VALUES)
        elif kind == "remove":
            config.pop(draw(st.sampled_from(KEYS)), None)
        elif kind == "add":
            config[draw(st.text(max_size=12))] = draw(VALUES)
        elif kind == "dataset":
            config["dataset"] = {"name": "d", "layout": "synthetic", **draw(DATASETS)}
        elif kind == "backbone":
            config["convnet_type"] = draw(BACKBONES)
        else:
            key = draw(st.sampled_from(KEYS))
            config[key[:-1] + "x"] = config.pop(key, 1)
    return config


def is_one_paragraph(message: str) -> bool:
    return 10 < len(message) < 3000 and "Traceback" not in message and "\n\n" not in message.strip()


@settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(mutated())
def test_a_mutated_config_is_refused_in_one_paragraph_or_described(config):
    start = time.monotonic()
    try:
        parsed = parse_config(config, source="fuzzed.json")
    except UserError as error:
        assert is_one_paragraph(str(error)), str(error)
        assert "key " in str(error) or "fuzzed.json" in str(error)
        return
    try:
        assert "dry run" in describe_run(parsed)
    except UserError as error:
        assert is_one_paragraph(str(error)), str(error)
    assert time.monotonic() - start < 60, "hangs"


@pytest.mark.parametrize("text", [
    "", "[]", "{", "null", '{"lr": NaN}', '{"lr": 1, "lr": 2}', "[" * 100_000, '{"a":' * 50_000, '{"lr": 1e400}',
    '{"epochs": ' + "9" * 5000 + "}", "\ufeff{}", '{"model_name": "\ud83d\ude00"}', "{'single': 1}",
    '{"model_name": "slca", "dataset": "cifar100", "epochs": 1}', "\x00\x01",
])
def test_a_file_that_is_no_config_is_one_message_and_no_folder(text, tmp_path, capsys):
    file = tmp_path / "c.json"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert main(["--config", str(file), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and is_one_paragraph(error)
    assert not (tmp_path / "out").exists()


GONE = {"dataset": {"name": "x", "layout": "npz", "root": "gone.npz"}}


@pytest.mark.parametrize(("change", "key"), [({"epoch": 3}, "epochs"), (GONE, "gone.npz")])
def test_the_real_command_line_answers_a_mistake_with_code_2(change, key, tmp_path):
    file = tmp_path / "c.json"
    file.write_text(json.dumps({**tiny_config().model_dump(mode="json"), **change}))
    command = [sys.executable, "main.py", "--config", str(file), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    assert key in done.stderr and "Traceback" not in done.stderr
    assert not list((tmp_path / "out").rglob("run.json"))
