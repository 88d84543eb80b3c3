"""Settings: the release's files run unchanged, every mistake is told by name."""

import json
from pathlib import Path

import pytest

from models import learner_class, resolve_config, resolve_name
from models.tools.dry_run import describe_run
from models.tools.schema import json_schema
from utils.config import load_config, parse_config, parse_overrides
from utils.errors import UserError

EXPS = Path(__file__).parents[2] / "exps"
VALID = {"model_name": "slca", "dataset": "cifar100_224", "init_cls": 10, "increment": 10, "convnet_type": "vit-b-p16", "epochs": 20}
RELEASE = [f"{method}_{data}{lora}{moco}" for method, lora in (("slca", ""), ("slcapp", "_lora"))
           for data in ("cifar", "imgnetr", "cub", "cars") for moco in ("", "_mocov3")]


@pytest.mark.parametrize("name", RELEASE)
def test_the_releases_file_means_what_the_paper_says(name):
    config = resolve_config(load_config(EXPS / f"{name}.json"))
    assert config.seeds == [1993, 1996, 1997] and config.ca_epochs == 5
    assert resolve_name(config.model_name) == ("slca_pp" if "slcapp" in name else "slca")
    assert config.bcb_lrscale == (0.1 if "slcapp" in name else 0.01)
    assert config.init_cls == (10 if "cifar" in name else 20)
    assert config.epochs == (90 if "moco" in name else 20 if "cifar" in name else 50)
    assert config.ca_with_logit_norm == (0.05 if "cars" in name else 0.1)
    if "slcapp" in name:
        assert (config.sce_a, config.sce_b) == ((0.5, 0.5) if "imgnetr" in name or "cars" in name else (1.0, 0.1))
        assert config.weight_decay == (0.0 if "imgnetr" in name or "cars" in name else 5e-4)


@pytest.mark.parametrize("path", sorted(p for p in EXPS.glob("*.json") if p.name != "schema.json"), ids=lambda p: p.stem)
def test_every_config_dry_runs_without_gpu_data_or_weights(path, monkeypatch, tmp_path):
    config = load_config(path)
    demo_data = EXPS.parent
    monkeypatch.chdir(demo_data if "demo" in path.stem else tmp_path)
    text = describe_run(config)
    assert "parameters:" in text and "tasks:" in text


def test_the_exported_schema_is_current():
    exported, current = json.loads((EXPS / "schema.json").read_text()), json_schema()
    for schemas in zip([exported, *exported["$defs"].values()], [current, *current["$defs"].values()], strict=True):
        # How a type is spelt differs between releases of pydantic; names, meanings and defaults do not.
        facts = [{key: (p.get("description"), p.get("default")) for key, p in schema["properties"].items()} for schema in schemas]
        assert facts[0] == facts[1], "run `python main.py schema`, which writes exps/schema.json"


@pytest.mark.parametrize(("change", "message"), [
    ({"epocs": 1}, r"unknown key 'epocs'; did you mean 'epochs'\?"),
    ({"epochs": "20"}, r"key 'epochs': got '20', allowed: a valid integer"),
    ({"epochs": True}, r"key 'epochs': got True, allowed: a valid integer"),
    ({"epochs": -1}, r"key 'epochs': got -1, allowed: greater than or equal to 0"),
    ({"lr": float("nan")}, r"key 'lr': got nan, allowed: a finite number"),
    ({"seed": []}, r"key 'seed': got \[\], allowed: .*at least one seed"),
    ({"precision": "fp8"}, r"key 'precision': got 'fp8', allowed: '32-true', 'bf16-mixed' or '16-mixed'"),
    ({"dataset": {"name": "mine", "rooot": "x"}}, r"unknown key 'dataset.rooot'; did you mean 'root'\?"),
    ({"convnet_type": {"timm": "x", "args": 3}}, r"key 'convnet_type.args': got 3, allowed: a valid dictionary"),
])
def test_a_wrong_setting_is_told_with_file_key_got_and_allowed(change, message):
    with pytest.raises(UserError, match="^mine.json: .*" + message):
        parse_config({**VALID, **change}, source="mine.json")


@pytest.mark.parametrize(("change", "key"), [({"lr": 1e-300}, "lr"), ({"model_name": "slca_pp", "lora_scale": 1e300}, "lora_scale"),
                                             ({"model_name": "ewc", "ewc_fisher_max": 1e39}, "ewc_fisher_max")])
def test_a_number_that_no_float32_holds_is_told(change, key):
    with pytest.raises(UserError, match=rf"key '{key}': got .*, allowed: 0, or 1\.2e-38 to 3\.4e\+38 in size"):
        resolve_config(parse_config({**VALID, **change}))


@pytest.mark.parametrize(("text", "message"), [
    ('{"epochs": 1,\n "lr": }', "not valid JSON at line 2, column 8"),
    ("[1, 2]", "expected one JSON object"),
    ('{"lr": 1, "lr": 2}', "key 'lr' appears twice"),
    ('{"lr": NaN}', "NaN is not a number"),
    ("[" * 100_000, "nested too deeply"),
])
def test_a_malformed_file_is_told(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(tmp_path / "a.json")


def test_a_missing_file_names_a_near_one():
    with pytest.raises(UserError, match=r"slca_cifra.json does not exist; did you mean .*slca_cifar.json"):
        load_config(EXPS / "slca_cifra.json")


def test_overrides_are_json_and_win_over_the_file():
    overrides = parse_overrides(["epochs=3", "seed=[1,2]", "model_name=finetune", 'dataset={"name":"x"}'])
    assert overrides == {"epochs": 3, "seed": [1, 2], "model_name": "finetune", "dataset": {"name": "x"}}
    assert load_config(EXPS / "slca_cifar.json", {"epochs": 3}).epochs == 3
    with pytest.raises(UserError, match="expected key=value"):
        parse_overrides(["epochs"])


@pytest.mark.parametrize(("written", "method"), [("slca", "slca"), ("SLCA_cifar", "slca"), ("slcapp_cars_lora", "slca_pp"),
                                                 ("SLCAPP", "slca_pp"),
                                                 ("slca++", "slca_pp"), ("Finetune", "finetune")])
def test_model_name_resolves_exactly_then_as_in_the_release(written, method):
    assert resolve_name(written) == method


def test_an_unknown_model_name_lists_what_exists():
    with pytest.raises(UserError, match=r"model_name: got 'fintune'; did you mean 'finetune'\? allowed: slca, slca_best, slca_pp"):
        resolve_name("fintune")


@pytest.mark.parametrize("device", [[-1], "-1", ["-1"], -1, "cpu"])
def test_minus_one_means_the_cpu(device):
    assert parse_config({**VALID, "device": device}).device == "cpu"


def test_nobody_writes_into_a_config():
    with pytest.raises(Exception, match="frozen"):
        parse_config(VALID).epochs = 3


@pytest.mark.parametrize(("settings", "title"), [({}, "SLCA"), ({"readout": "rgda", "features": "cls+mean"}, "SLCA + RGDA, cls+mean"),
                                                 ({"bcb_lrscale": 0, "readout": "rgda", "drift": "linear"}, "Frozen SLCA + RGDA, drift")])
def test_a_title_says_what_goes_beyond_the_paper(settings, title):
    config = resolve_config(parse_config({**VALID, **settings}))
    assert learner_class(config.model_name).title_of(config) == title
