"""models/base.py beyond what every method is tested for (test_contract.py)."""

import gc
import weakref

import torch

import trainer
from models.base import BaseLearner
from tests.run_files import tiny_config
from tests.support import learn, make_config, synthetic_learner
from trainer import train

SYNTHETIC = {"name": "tiny", "layout": "synthetic", "num_classes": 5, "image_size": 16, "train_per_class": 12, "test_per_class": 4,
             "train_transform": "none"}


def test_slca_runs_on_a_resnet(tmp_path):
    config = make_config(dataset={**SYNTHETIC, "image_size": 32}, convnet_type="timm/resnet10t", batch_size=8, ca_epochs=1, ca_samples=16)
    assert train(config, tmp_path).seeds[0].last is not None


def test_what_trained_in_the_first_task_and_is_frozen_afterwards_stays_in_the_state():
    """Methods that adapt the backbone once freeze it later; its weights must not be lost."""
    saved, loaded = (synthetic_learner("finetune") for _ in range(2))
    learn(saved, [0])
    saved.net.backbone.requires_grad_(False)
    learn(saved, [1])
    state = saved.network_state()
    assert "backbone.model.blocks.0.attn.qkv.weight" in state
    loaded.net.backbone.requires_grad_(False)
    loaded.load_network_state(state, 1)
    assert all(torch.equal(tensor, loaded.net.state_dict()[name]) for name, tensor in saved.net.state_dict().items())


def test_the_network_of_an_earlier_seed_is_gone_when_the_next_one_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "write_report", lambda result, folder: None)
    earlier, alive = [], []
    init = BaseLearner.__init__

    def watched(self, *args, **kwargs):
        alive.append([ref() is not None for ref in earlier])
        init(self, *args, **kwargs)
        earlier.append(weakref.ref(self.net))

    monkeypatch.setattr(BaseLearner, "__init__", watched)
    gc.disable()  # reference counts alone must do it
    try:
        train(tiny_config(seed=[1, 2, 3], epochs=1), tmp_path)
    finally:
        gc.enable()
    assert alive == [[], [False], [False, False]]
