"""The two backbones in pretrained/ are the ones that their cards describe, and configs name them by stream."""

import hashlib
import json
from pathlib import Path

import pytest
from safetensors import safe_open

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["vit_demo_glyphs", "vit_demo_clothing"])
def test_a_shipped_backbone_is_the_one_on_its_card(name):
    path = ROOT / "pretrained" / f"{name}.safetensors"
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    assert hashlib.sha256(path.read_bytes()).hexdigest() in card and f"{path.stat().st_size:,} bytes" in card
    with safe_open(path, "pt") as stored:
        about = json.loads(stored.metadata()["about"])
        assert "head.weight" not in stored.keys() and about["arch"]["embed_dim"] == 128  # noqa: SIM118
    assert f"{about['val_accuracy']:.2f}%" in card and f"{about['steps']:,} steps" in card


@pytest.mark.parametrize("kind, weights", [("near", "vit_demo_glyphs"), ("far", "vit_demo_clothing")])
def test_icons50_configs_differ_in_the_backbone_alone(kind, weights):
    paths = sorted((ROOT / "exps").glob(f"icons50_*_{kind}.json"))
    assert len(paths) >= 9
    for path in paths:
        config = json.loads(path.read_text(encoding="utf-8"))
        assert config["convnet_type"].pop("weights") == f"pretrained/{weights}.safetensors"
        other = json.loads(path.with_name(path.name.replace(kind, {"near": "far", "far": "near"}[kind])).read_text(encoding="utf-8"))
        other["convnet_type"].pop("weights")
        assert config == other and config["dataset"]["root"] == "exps/streams/icons50.npz" and config["init_cls"] == 5
