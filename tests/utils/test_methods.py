"""utils/methods.py and models/registry.py: methods and settings found in the source, before anything is imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from models import load_experiment
from utils.config import load_config, parse_config
from utils.errors import UserError
from utils.methods import catalogue, resolve_name

PROJECT = Path(__file__).parents[2]
COMMON = {"dataset": "synthetic", "init_cls": 2, "increment": 2, "epochs": 1, "convnet_type": "vit-b-p16"}


def test_a_setting_of_another_method_names_its_owner():
    with pytest.raises(UserError, match="key 'ewc_lambda' belongs to ewc and means nothing to finetune"):
        parse_config({**COMMON, "model_name": "finetune", "ewc_lambda": 3, "readout": "rgda"})


def test_a_misspelt_setting_of_the_method_names_the_nearest():
    with pytest.raises(UserError, match=r"unknown key 'ca_epoch'; did you mean 'ca_epochs'\?"):
        parse_config({**COMMON, "model_name": "slca", "ca_epoch": 3})


def test_saying_that_no_image_is_stored_is_no_foreign_setting():
    parse_config({**COMMON, "model_name": "slca", "memory_size": 0, "memory_per_class": 0, "fixed_memory": False})
    with pytest.raises(UserError, match="'memory_size' belongs to"):
        parse_config({**COMMON, "model_name": "slca", "memory_size": 20})


def test_another_method_over_a_file_drops_the_foreign_settings_with_one_warning(tmp_path, caplog):
    settings = {**COMMON, "model_name": "ewc", "ewc_lambda": 5.0, "ewc_images": 3, "bcb_lrscale": 1.0}
    (tmp_path / "a.json").write_text(json.dumps(settings))
    config = load_experiment(tmp_path / "a.json", {"model_name": "lwf"})
    assert config.model_name == "lwf" and not hasattr(config, "ewc_lambda")
    (record,) = caplog.records
    assert record.message.endswith("a.json: ewc_lambda, ewc_images left out, lwf does not have these settings")
    with pytest.raises(UserError, match="'ewc_lambda' belongs to ewc"):  # asked for by hand
        load_experiment(tmp_path / "a.json", {"model_name": "lwf", "ewc_lambda": 2.0})


@pytest.mark.parametrize("written", ["slca_pp_cifar", "slca++_x", "SLCA-PP", "slca_plus_plus", "slcapp_cars_lora", "SLCA++"])
def test_what_looks_like_slcapp_is_slcapp(written):
    assert resolve_name(written) == "slca_pp"


@pytest.mark.parametrize(("written", "method"), [("slca_best_mine", "slca_best"), ("slca_cifar", "slca"), ("SimpleCIL", "ncm")])
def test_the_longest_known_name_wins(written, method):
    assert resolve_name(written) == method


@pytest.mark.parametrize("written", ["slcap", "slcax", "fintune"])
def test_what_looks_like_neither_is_an_error(written):
    with pytest.raises(UserError, match="model_name: got"):
        resolve_name(written)


def test_a_misspelt_key_is_told_before_torch_is_imported():
    program = ("import sys; from utils.config import load_config; from utils.errors import UserError\n"
               "try: load_config('exps/slca_demo.json', {'ca_epoch': 1})\n"
               "except UserError as error: print(error, 'torch' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, timeout=60, check=True)
    assert "did you mean 'ca_epochs'" in done.stdout and done.stdout.strip().endswith("False")


def test_every_method_has_a_title_a_summary_and_a_file_of_its_own():
    methods = catalogue().methods.values()
    assert all(method.title and method.summary for method in methods)
    assert len({method.file for method in methods}) >= len(methods) - 1  # CoMA and CoFiMA share one


def test_a_null_means_the_default_as_in_the_authors_files():
    from models import resolve_config
    assert resolve_config(load_config(PROJECT / "exps" / "slca_cifar.json", {"ca_epochs": None})).ca_epochs == 5
