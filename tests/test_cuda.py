"""On a CUDA device: what it computes beside the CPU, resuming, 16-mixed, repeating, prediction and export (`make gpu`)."""

import numpy as np
import pytest
import torch
from PIL import Image

import trainer
from convs.adapters import Adapter
from models import stage1
from models.base import BaseLearner
from models.tools.build import make_learner
from models.tools.export import export
from models.tools.predict import load_learner
from tests.run_files import assert_same_run, only_run, tiny_config
from tests.support import make_config, that_it_has
from tests.utils.run.test_resume import run_stopping_at_every_checkpoint
from trainer import train
from utils.data.data_manager import DataManager
from utils.machine.device import make_fabric
from utils.run.monitor import Monitor

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
GREY_LEVELS = 2 / 255 / 0.22  # two, of an image that was normalised with a standard deviation of 0.22 or more
CLOSE = 1e-4  # of a number on the GPU to the CPU's, relative to the largest of its tensor
IMAGES = {"name": "tiny", "layout": "synthetic", "num_classes": 6, "image_size": 16, "train_per_class": 12, "test_per_class": 2,
          "train_transform": "crop224"}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(trainer, "write_report", lambda result, folder: None)


def learner_on(device: str, method: str, **settings) -> BaseLearner:
    """Six classes in three tasks; one step per task."""
    usual = {"model_name": method, "dataset": IMAGES, "batch_size": 24, "memory_size": 20, "ca_epochs": 1, "ca_samples": 8,
             "device": device}
    config = make_config(**{**that_it_has(method, usual), **settings})
    return make_learner(config, 1993, make_fabric(config.device, config.precision))


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference, relative to the largest number."""
    one, other = one.cpu().double(), other.cpu().double()
    return ((one - other).abs().max() / one.abs().max().clamp_min(1e-3)).item() if one.numel() else 0.0


def test_a_step_on_the_gpu_is_the_cpus(method):
    states = []
    for device in ("cpu", "cuda"):
        learner = learner_on(device, method, lr=1e-3)
        learner.begin_task(0)
        for adapter in (module for module in learner.net.modules() if isinstance(module, Adapter)):
            adapter.dropout = 0.0  # drawn on the device, from its own generator
        if learner.has_heads:
            learner.train(0, Monitor())
        features, labels = learner.extract("train", 0)
        states.append({**learner.network_state(), "features": features, "labels": labels})
    on_cpu, on_gpu = states
    for state in states:  # directions that InfLoRA takes from a decomposition have no sign of their own
        state |= {name: tensor.abs() for name, tensor in state.items() if "lora_" in name}
    far = {name: found for name, tensor in on_cpu.items() if (found := distance(tensor, on_gpu[name])) > CLOSE}
    assert not far


def test_all_tasks_of_a_method_are_learned_on_the_gpu(method):
    learner = learner_on("cuda", method)
    for task in range(learner.stream.num_tasks):
        learner.learn_task(task, Monitor())
    learner.net.eval()
    images, _ = next(iter(learner.data.batches("test", 0, batch_size=4, augment=False)))
    with torch.inference_mode():
        scores = learner.scores(learner.features(images))
    assert scores.is_cuda and scores.shape == (4, learner.stream.num_classes)
    assert not scores.isnan().any()
    assert learner.evaluate(learner.task).top1 is not None


def test_images_finished_on_the_gpu_are_the_cpus():
    for transform in ("crop224", "crop32", "resize300_crop224", "none"):
        for size in (16, 80):
            config = make_config(dataset={**IMAGES, "train_transform": transform, "image_size": size}, batch_size=8,
                                 convnet_type={"timm": "vit_tiny_patch16_224", "args": {"img_size": size, "patch_size": 8}})
            there, here = (DataManager(config, 1993, device=torch.device(device)) for device in ("cuda", "cpu"))
            for augment in (True, False):
                which = {"batch_size": 8, "augment": augment, "shuffle_seed": 5}
                pairs = zip(there.batches("train", 0, **which), here.batches("train", 0, **which), strict=True)
                for (ours, labels), (theirs, same) in pairs:
                    assert ours.is_cuda and torch.equal(labels.cpu(), same)
                    bytes_between = transform == "resize300_crop224" or size == 80  # the CPU rounds larger images to whole grey levels
                    assert (ours.cpu() - theirs).abs().max() < (GREY_LEVELS if bytes_between else CLOSE)


def test_files_that_workers_read_end_on_the_gpu_as_on_the_cpu(tmp_path):
    """The workers are forked from a process that has a GPU already; images are of many sizes."""
    random = np.random.default_rng(0)
    for number in range(28):
        file = tmp_path / ("train" if number < 24 else "val") / f"class{number % 2}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (*random.integers(20, 60, 2), 3), dtype=np.uint8)).save(file)
    config = make_config(batch_size=5, num_workers=2, init_cls=2, increment=0, dataset={
        "name": "files", "root": str(tmp_path), "image_size": 32, "train_transform": "crop224"},
        convnet_type={"timm": "vit_tiny_patch16_224", "args": {"img_size": 32, "patch_size": 8}})
    there, here = (DataManager(config, 1993, device=torch.device(device)) for device in ("cuda", "cpu"))
    for epoch in range(2):
        which = {"batch_size": 5, "augment": True, "shuffle_seed": epoch}
        for (ours, labels), (theirs, same) in zip(there.batches("train", 0, **which), here.batches("train", 0, **which), strict=True):
            assert ours.is_cuda and torch.equal(labels.cpu(), same)
            assert (ours.cpu() - theirs).abs().max() < CLOSE


def waits_are_errors(batches):
    """The batches; from the first one on whatever makes the host wait for the GPU raises, until there is no more."""
    for batch in batches:
        torch.cuda.set_sync_debug_mode("error")
        yield batch
        torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("method", ["slca", "slca_pp"])
def test_no_step_of_training_or_of_alignment_waits(method, monkeypatch):
    learner = learner_on("cuda", method, batch_size=8, ca_batch_size=8)
    training, drawn = learner.training_batches, learner.drawn_batches
    learner.learn_task(0, Monitor())
    monkeypatch.setattr(learner, "training_batches", lambda *args: waits_are_errors(training(*args)))
    monkeypatch.setattr(learner, "drawn_batches", lambda *args: waits_are_errors(drawn(*args)))
    try:
        learner.learn_task(1, Monitor())
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_profiled_run_says_what_the_gpu_did(tmp_path):
    train(tiny_config(epochs=1, device="cuda"), tmp_path, name="run", profile=True)
    told = next(tmp_path.rglob("stages.txt")).read_text()
    assert "train" in told and "alignment" in told


@pytest.mark.parametrize("method", ["slca", "slca_pp", "replay"])
def test_a_run_stopped_at_every_checkpoint_ends_on_the_gpu_like_an_uninterrupted_one(method, tmp_path, monkeypatch):
    config = tiny_config(model_name=method, epochs=2, device="cuda")
    train(config, tmp_path / "whole", name="run")
    assert run_stopping_at_every_checkpoint(config, tmp_path / "stopped", monkeypatch) >= 2
    assert_same_run(only_run(tmp_path / "whole" / "run"), only_run(tmp_path / "stopped" / "run"))


def test_in_16_mixed_a_first_step_that_overflows_leaves_nothing_behind():
    """Uninitialised memory is full of NaN here, so that a momentum which starts there is seen."""
    torch.use_deterministic_algorithms(True)
    try:
        learner = learner_on("cuda", "slca", precision="16-mixed", batch_size=8)
        scaler = learner.fabric.strategy.precision.scaler
        scaler._init_scale = 2.0**40
        learner.begin_task(0)
        before = {name: tensor.clone() for name, tensor in learner.network_state().items()}
        learner.train(0, Monitor())
        after = learner.network_state()
        assert scaler.get_scale() < 2.0**40, "no step overflowed"
        assert all(tensor.isfinite().all() for tensor in after.values())
        optimizer = learner.make_optimizer(0)
        module, optimizer = learner.fabric.setup(learner.training_module(0), optimizer)
        while scaler.get_scale() > 2.0**16:  # a step halves it
            stage1.train_epoch(learner, module, optimizer, learner.training_batches(0, 0))
        stage1.train_epoch(learner, module, optimizer, learner.training_batches(0, 0))
        assert all(tensor.isfinite().all() for tensor in learner.network_state().values())
        assert any(not torch.equal(tensor, before[name]) for name, tensor in learner.network_state().items())
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_half_precision_trains(precision):
    learner = learner_on("cuda", "slca", precision=precision)
    for task in range(2):
        learner.learn_task(task, Monitor())
    assert all(tensor.isfinite().all() for tensor in learner.network_state().values())


def test_a_deterministic_run_repeats_bit_for_bit(tmp_path):
    config = tiny_config(model_name="slca_pp", device="cuda")
    for out in ("one", "two"):
        train(config, tmp_path / out, name="run")
    assert_same_run(*(only_run(tmp_path / out / "run") for out in ("one", "two")))


def test_a_run_of_the_gpu_is_exported_and_predicts_as_on_the_cpu(tmp_path):
    train(tiny_config(epochs=1, device="cuda"), tmp_path, name="run")
    run = only_run(tmp_path / "run")
    on_gpu, on_cpu = (load_learner(run, device=device) for device in ("cuda", "cpu"))
    assert export(on_gpu, tmp_path / "model.pt2") < CLOSE
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    images = (images - torch.tensor(on_cpu.format.mean).view(1, -1, 1, 1)) / torch.tensor(on_cpu.format.std).view(1, -1, 1, 1)
    with torch.inference_mode():
        scores = [found.learner.scores(found.learner.features(images.to(device))) for found, device in ((on_gpu, "cuda"), (on_cpu, "cpu"))]
    assert distance(scores[1], scores[0]) < CLOSE
