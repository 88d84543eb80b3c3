"""Features that runs share: the figures are those of a run that shares nothing, and the second run computes none."""

import pytest
import torch
from lightning_fabric import Fabric

from convs.token_features import TokenBackbone
from models import evaluation
from models.frozen.linear_probe import LinearProbe
from models.frozen.ncm import NCM
from models.tools import build
from tests.support import learn, make_config, make_learner, micro_backbone, that_it_has
from utils.data.data_manager import DataManager
from utils.data.feature_store import packs

IMAGES = {"name": "tiny", "layout": "synthetic", "num_classes": 6, "image_size": 16, "train_per_class": 12, "test_per_class": 3,
          "train_transform": "none"}
FROZEN = {"linear_probe": {}, "finetune": {"bcb_lrscale": 0.0}, "ncm": {}, "lda": {}, "fecam": {}, "ranpac": {},
          "slca": {"bcb_lrscale": 0.0, "readout": "rgda", "views": 5, "features": ["cls", "mean"]}}


def learner_of(method, root, cache, seed=0, **settings):
    usual = that_it_has(method, {"model_name": method, "dataset": IMAGES, "batch_size": 8, "test_batch_size": 7, "epochs": 2})
    config = make_config(**{**usual, "data_root": str(root), "feature_cache": cache, **settings})
    return make_learner(config, DataManager(config, seed=seed))


def everything(learner):
    """All that a run of three tasks leaves: tensors, and figures after each task."""
    figures = []
    for task in range(3):
        learn(learner, [task])
        figures.append(learner.evaluate(task))
    tensors = {**learner.network_state(), **learner.extra_state()}
    return [(found.top1, found.task_accuracies, found.calibration_error) for found in figures], tensors


def assert_same(one, other):
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    assert all(torch.equal(tensor, other[1][name]) for name, tensor in one[1].items())


@pytest.mark.parametrize("method", FROZEN)
def test_with_and_without_the_cache_and_for_a_second_seed_every_bit_is_the_same(method, tmp_path, monkeypatch):
    settings = FROZEN[method]
    plain = [everything(learner_of(method, tmp_path, "none", seed, **settings)) for seed in (0, 1)]
    assert not list(tmp_path.iterdir())
    assert_same(plain[0], everything(learner_of(method, tmp_path, "disk", 0, **settings)))
    monkeypatch.setattr(evaluation, "plain_batches", None)  # no image is read from here on
    assert_same(plain[1], everything(learner_of(method, tmp_path, "disk", 1, **settings)))


def test_only_images_that_no_run_has_seen_are_computed(tmp_path, monkeypatch):
    everything(learner_of("ncm", tmp_path, "disk", dataset={**IMAGES, "classes": [0, 1, 2, 3, 4, 5]}))
    passes = []
    real = evaluation.plain_batches
    monkeypatch.setattr(evaluation, "plain_batches", lambda learner, split, **which: passes.append(which) or real(learner, split, **which))
    everything(learner_of("ncm", tmp_path, "disk", val_fraction=0.25))
    assert not passes


@pytest.mark.parametrize("changed", [
    {"normalize": "unit"}, {"torch_seed": 2}, {"precision": "bf16-mixed"}, {"convnet_type": {"timm": "vit_tiny_patch16_224", "args": {
        "img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 4, "mlp_ratio": 4}}}])
def test_other_input_weights_arithmetic_or_architecture_share_nothing(changed, tmp_path):
    for settings in ({}, changed):
        config = make_config(**{**that_it_has("ncm", {"model_name": "ncm", "dataset": IMAGES}), "data_root": str(tmp_path),
                                "feature_cache": "disk", **settings})
        learner = build.make_learner(config, 0, Fabric(accelerator="cpu", devices=1, precision=config.precision))
        learn(learner, [0])
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 2


def test_a_backbone_that_trains_or_carries_a_part_shares_nothing(tmp_path):
    for method, settings in (("finetune", {}), ("slcapp", {}), ("ncm", {"first_session": "adapter"}), ("aper", {})):
        learn(learner_of(method, tmp_path, "disk", **settings), [0, 1])
    assert not list(tmp_path.iterdir())


def test_a_method_that_changes_the_backbone_from_outside_shares_nothing(tmp_path, monkeypatch):
    def doubled(self, backbone):
        backbone.model.register_forward_hook(lambda module, images, features: 2 * features)
        return backbone

    monkeypatch.setattr(LinearProbe, "prepare_backbone", doubled)
    learn(learner_of("linear_probe", tmp_path, "disk"), [0])
    monkeypatch.setattr(NCM, "prepare_backbone", lambda self, backbone: backbone)
    learn(learner_of("ncm", tmp_path, "disk"), [0])
    assert not list(tmp_path.iterdir())


def test_with_augmentation_stage_1_reads_images(tmp_path):
    augmented = {**IMAGES, "train_transform": "crop32"}
    plain = everything(learner_of("linear_probe", tmp_path, "none", dataset=augmented))
    assert_same(plain, everything(learner_of("linear_probe", tmp_path, "disk", dataset=augmented)))
    assert len(list(packs(tmp_path / "cache" / "features"))) == 3  # of the test images of three tasks


def test_a_feature_has_the_same_bits_in_whichever_batch():
    images = torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for backbone in (micro_backbone().eval(), TokenBackbone(micro_backbone(), ["cls", "mean", "std"]).eval()):
        with torch.no_grad():
            whole = backbone(images)
            for size in (1, 3, 8, 17):
                assert torch.equal(torch.cat([backbone(part) for part in images.split(size)]), whole)
