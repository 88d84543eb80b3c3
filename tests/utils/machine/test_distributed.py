"""Two real processes on the CPU (gloo) against one."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import trainer
from models import stage1
from tests.processes import wait_for
from tests.run_files import assert_same_run, only_run
from tests.support import MICRO_VIT, SMALL, StubData, make_config, make_learner, that_it_has
from trainer import train
from utils.errors import UserError
from utils.machine.device import make_fabric
from utils.machine.distributed import first_process_first, gather_rows, launch, share_of_batch

PROJECT = Path(__file__).parents[3]
NO_PICTURES = "import trainer\ntrainer.write_report = lambda result, folder: None\n"  # a plugin: pictures take most of a tiny run's time
# 13 images per class, batches of 10: the last batch of the 3-class task is a single image, 39 and 26 images split unevenly.
EXPERIMENT = {
    "dataset": {"name": "tiny", "layout": "synthetic", "num_classes": 7, "image_size": 16, "train_per_class": 13, "test_per_class": 5,
                "train_transform": "none"},
    "init_cls": 3, "increment": 2, "epochs": 3, "batch_size": 19, "lr": 0.02, "ca_epochs": 2, "ca_samples": 64, "pretrained": False,
    "convnet_type": {"timm": "vit_tiny_patch16_224", "args": MICRO_VIT}, "device": "cpu", "seed": 0}


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(trainer, "write_report", lambda result, folder: None)


def run(folder: Path, name: str, launcher: list[str], **settings) -> tuple[dict, dict]:
    """Results and the last checkpoint's tensors of a run in processes of its own."""
    return runs(folder, launcher, {name: settings})[name]


def runs(folder: Path, launcher: list[str], settings: dict[str, dict]) -> dict[str, tuple[dict, dict]]:
    """The same of several runs, one after another in the same processes, by their names."""
    configs = [folder / f"{name}.json" for name in settings]
    for config, own in zip(configs, settings.values(), strict=True):
        config.write_text(json.dumps(that_it_has(own["model_name"], {**EXPERIMENT, **own})))
    (folder / "no_pictures.py").write_text(NO_PICTURES)
    command = [sys.executable, *launcher, "main.py", "--config", *map(str, configs), "--out", str(folder), "--plugin",
               str(folder / "no_pictures.py")]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Last accuracy") == len(configs)  # one process prints
    return {name: outcome(folder / name) for name in settings}


def outcome(experiment: Path) -> tuple[dict, dict]:
    """Results and the last checkpoint's tensors; there is one run."""
    results, = experiment.glob("*/results.json")
    checkpoint = sorted((results.parent / "seed0" / "checkpoints").iterdir())[-1]
    tensors = {key: tensor for file in checkpoint.glob("*.safetensors") for key, tensor in load_file(file).items()}
    return json.loads(results.read_text()), tensors


def compare(one: tuple[dict, dict], two: tuple[dict, dict]) -> None:
    (results, tensors), (results_2, tensors_2) = one, two
    curve, curve_2 = results["seeds"][0]["top1_curve"], results_2["seeds"][0]["top1_curve"]
    np.testing.assert_allclose(curve, curve_2, atol=3)  # one of 35 test images is 2.9 %
    for part in (name.removesuffix("means") for name in tensors if name.startswith("gaussians.") and name.endswith("means")):
        np.testing.assert_allclose(tensors[f"{part}means"], tensors_2[f"{part}means"], atol=1e-5)
        for start, stop in _rows(tensors[f"{part}ranks"]):
            covariance, covariance_2 = (t[f"{part}factors"][start:stop].T @ t[f"{part}factors"][start:stop] for t in (tensors, tensors_2))
            np.testing.assert_allclose(covariance, covariance_2, atol=1e-5)
    for name in tensors:
        if name.startswith(("backbone.", "heads")):
            np.testing.assert_allclose(tensors[name], tensors_2[name], atol=1e-4, err_msg=name)


def _rows(ranks: torch.Tensor) -> list[tuple[int, int]]:
    ends = ranks.cumsum(0).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


@pytest.mark.timeout(300)
def test_two_processes_give_what_one_gives(tmp_path):
    train(make_config(**EXPERIMENT), tmp_path, name="one")
    one = outcome(tmp_path / "one")
    compare(one, run(tmp_path, "own_launch", [], model_name="slca", device=["cpu", "cpu"]))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    compare(one, run(tmp_path, "torchrun", torchrun, model_name="slca", accumulate=3))


def in_one_and_in_two(folder: Path, settings: dict[str, dict]) -> Iterator[tuple[str, dict, dict, dict, dict]]:
    """Each method's name, and results and tensors of a run in one process and in two."""
    two = runs(folder, [], {method: {**own, "device": ["cpu", "cpu"]} for method, own in settings.items()})
    for method, own in settings.items():
        train(make_config(**own), folder / "one", name=method)
        yield method, *outcome(folder / "one" / method), *two[method]


@pytest.mark.timeout(500)
def test_two_processes_give_the_network_and_the_memory_that_one_gives(tmp_path, no_pictures):
    settings = {method: that_it_has(method, {**EXPERIMENT, **SMALL.get(method, {}), "model_name": method, "memory_size": 20, "epochs": 2,
                                             "first_session": "ssf"})
                for method in ("ewc", "derpp", "gem", "bic", "coil", "l2p", "aper")}
    for method, results, tensors, results_2, tensors_2 in in_one_and_in_two(tmp_path, settings):
        np.testing.assert_allclose(results["seeds"][0]["top1_curve"], results_2["seeds"][0]["top1_curve"], atol=3, err_msg=method)
        assert tensors.keys() == tensors_2.keys(), method
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                np.testing.assert_allclose(tensor, tensors_2[name], atol=1e-3, rtol=1e-3, err_msg=f"{method} {name}")
            else:
                assert torch.equal(tensor, tensors_2[name]), f"{method} {name}"


@pytest.mark.timeout(500)
def test_two_processes_gather_the_statistics_and_align_the_heads_that_one_does(tmp_path, no_pictures):
    """At a rate of next to nothing: the adapters' dropout is drawn by each process for itself."""
    settings = {method: that_it_has(method, {**EXPERIMENT, **SMALL[method], "model_name": method, "epochs": 1, "lr": 1e-7})
                for method in ("ease", "tuna", "mos")}
    for method, _, tensors, _, tensors_2 in in_one_and_in_two(tmp_path, settings):
        assert tensors.keys() == tensors_2.keys(), method
        for name, tensor in tensors.items():
            if name != "gaussians.factors":  # whose rows may turn round
                np.testing.assert_allclose(tensor, tensors_2[name], atol=1e-4, rtol=1e-4, err_msg=f"{method} {name}")


def second_process(first: int) -> int:
    """The process that `first` started for the other half of each batch."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            if parent == first and b"\0LOCAL_RANK=1\0" in status.with_name("environ").read_bytes():
                return int(status.parent.name)
    raise AssertionError("there is no second process")


@pytest.mark.timeout(600)
def test_when_one_of_two_processes_is_killed_that_is_told_and_they_go_on_bit_for_bit(tmp_path):
    whole, killed, plugin = (tmp_path / name for name in ("whole.json", "killed.json", "no_pictures.py"))
    for config in (whole, killed):
        config.write_text(json.dumps({**EXPERIMENT, "model_name": "slca", "device": ["cpu", "cpu"], "init_cls": 4, "increment": 3,
                                      "epochs": 6, "checkpoint_every": 1}))
    plugin.write_text(NO_PICTURES)

    def start(*arguments: str) -> subprocess.Popen:
        command = [sys.executable, "main.py", "--out", str(tmp_path), "--plugin", str(plugin), *arguments]
        return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)

    both = start("--config", str(whole), str(killed))  # one after the other
    wait_for(lambda: any((tmp_path / "killed").rglob("task_02_epoch_*/checkpoint.json")) or both.poll() is not None, seconds=240)
    os.kill(second_process(both.pid), signal.SIGKILL)
    _, printed = both.communicate(timeout=120)
    assert both.returncode == 2, printed[-2000:]
    assert re.search(r"^error: process 1 of this run, counted from 0, was ended by signal 9, .* continue with --resume\.$", printed, re.M)
    assert "Traceback" not in printed
    run = only_run(tmp_path / "killed")
    assert not (run / "results.json").exists()
    resumed = start("--config", str(killed), "--resume")
    _, printed = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, printed[-2000:]
    assert "task 2: continuing after epoch" in (run / "seed0" / "log.txt").read_text()
    assert_same_run(only_run(tmp_path / "whole"), run)


@pytest.mark.timeout(300)
def test_buffers_that_each_process_counts_by_itself_are_the_checkpoints_and_testing_needs_one_process_or_several(tmp_path):
    here = {**EXPERIMENT, "epochs": 1, "convnet_type": "timm/resnet10t", "dataset": {**EXPERIMENT["dataset"], "image_size": 32}}
    results, tensors = run(tmp_path, "two", [], **here | {"model_name": "finetune", "device": ["cpu", "cpu"]})
    assert any(name.endswith("running_mean") for name in tensors)
    told = {}
    for device in ("cpu", "cpu,cpu"):
        done = subprocess.run([sys.executable, "main.py", "--config", str(tmp_path / "two.json"), "--out", str(tmp_path), "--test_only",
                               "--device", device], cwd=PROJECT, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0 and "the run reported" not in done.stderr + done.stdout, done.stderr[-2000:]
        told[device] = next(line for line in done.stdout.splitlines() if line.startswith("Last accuracy"))
    assert told["cpu"] == told["cpu,cpu"] and f"{results['seeds'][0]['last']:.2f}" in told["cpu"]


def test_several_devices_in_an_interactive_session_are_one_message(monkeypatch):
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    with pytest.raises(UserError, match=r"2 devices need 2 processes.*interactive session"):
        launch(make_fabric(["cpu", "cpu"], "32-true"))


def test_the_shares_of_a_batch_need_no_exchange_and_make_the_mean_of_the_whole():
    fabric = SimpleNamespace(world_size=3)  # it can exchange nothing
    losses, mean = [[1.0, 5.0], [2.0], []], 8 / 3
    shares = [share_of_batch(fabric, len(part), 3) for part in losses]
    assert sum(share * sum(part) / max(len(part), 1) for share, part in zip(shares, losses, strict=True)) / 3 == pytest.approx(mean)
    assert share_of_batch(SimpleNamespace(world_size=1), 2, 3) is None


@pytest.mark.parametrize(("first", "order"), [(True, ["work", "wait"]), (False, ["wait", "work"])])
def test_the_first_process_downloads_before_the_others_look(first, order):
    done = []
    fabric = SimpleNamespace(world_size=2, is_global_zero=first, barrier=lambda _name: done.append("wait"))
    with first_process_first(fabric):
        done.append("work")
    assert done == order


def test_gathering_in_one_process_changes_nothing():
    learner = make_learner(make_config(), StubData([2]))
    rows = torch.randn(3, 2)
    assert gather_rows(learner.fabric, rows) is rows


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_accumulated_parts_make_the_step_of_the_whole_batch(parts):
    images, labels = torch.randn(7, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    weights, stats = [], []
    for accumulate in (1, parts):
        learner = make_learner(make_config(accumulate=accumulate, momentum=0.9), StubData([3]))
        torch.manual_seed(0)
        for parameter in learner.net.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        learner.begin_task(0)
        module, optimizer = learner.training_module(0), learner.make_optimizer(0)
        stats.append(stage1.train_epoch(learner, module, optimizer, [(images, labels), (images + 0.1, labels)]))
        weights.append(learner.net.state_dict())
    for name in weights[0]:
        torch.testing.assert_close(weights[1][name], weights[0][name], atol=1e-6, rtol=1e-5)
    np.testing.assert_allclose(stats[1].losses, stats[0].losses, atol=1e-6)
    assert stats[1].accuracy == stats[0].accuracy
