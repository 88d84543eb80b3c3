"""Backbones by name, by description and from files."""

import pytest
import torch

from convs.backbones import REGISTRY, build_backbone, describe, list_backbones
from models.tools.dry_run import count_parameters, shape_learner
from tests.support import MICRO_VIT, StubData, make_config, make_learner, micro_backbone
from utils.errors import UserError


@pytest.mark.parametrize("name", REGISTRY)
def test_registered_backbones_are_vit_b_16_with_a_fresh_norm(name):
    backbone = build_backbone(describe(name), pretrained=False, device="meta")
    assert (backbone.dim, backbone.image_size, backbone.channels) == (768, 224, 3)
    assert backbone.model.norm.eps == 1e-5
    assert sum(p.numel() for p in backbone.parameters()) == 85_798_656
    assert name in list_backbones()


def test_another_timm_model_keeps_its_final_norm():
    assert build_backbone(describe("timm/vit_base_patch16_224"), pretrained=False, device="meta").model.norm.eps == 1e-6


def test_unknown_name_is_told_with_what_exists():
    with pytest.raises(UserError, match=r"convnet_type: got 'vit-b-p32'.*vit-b-p16.*timm/<name>"):
        describe("vit-b-p32")


def test_missing_weights_are_told_with_file_and_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"mocov3-vit-base-300ep.pth.*pretrained/"):
        build_backbone(describe("vit-b-p16-mocov3"))


def test_wrong_arguments_are_told():
    with pytest.raises(UserError, match="timm cannot make"):
        build_backbone(describe("vit_tiny_patch16_224", {**MICRO_VIT, "depht": 3}), pretrained=False)


@pytest.mark.parametrize(("targets", "backbone_trained"), [(["qkv"], 270_336), (["qkv", "fc1", "fc2"], 638_976)])
def test_hybrid_slow_learner_trains_as_many_parameters_as_the_paper_says(targets, backbone_trained):
    config = make_config(model_name="slca_pp", convnet_type="vit-b-p16-lora", lora_targets=targets)
    numbers = count_parameters(shape_learner(config, StubData([10]).stream))
    assert numbers["trained_backbone"] == backbone_trained
    assert numbers["trained_heads"] == 7_690


def test_trained_names_and_rates_are_those_of_the_release():
    from tests.support import load_parity, our_name
    facts = load_parity("3_vitb16_counts")[1]["slcapp_lora4"]
    learner = shape_learner(make_config(model_name="slca_pp", convnet_type="vit-b-p16-lora"), StubData([10]).stream)
    ours = {name: tuple(p.shape) for name, p in learner.net.named_parameters() if p.requires_grad}
    theirs = {our_name(name): tuple(shape) for name, shape, group in facts["trainable_name_shape_group"] if group is not None}
    assert ours == theirs


def test_average_pooling_takes_the_mean_of_the_patch_tokens():
    backbone = micro_backbone(reset_norm=False, global_pool="avg").eval()
    images = torch.randn(2, 3, 16, 16)
    tokens = backbone.model.forward_features(images)[:, 1:]
    torch.testing.assert_close(backbone(images), backbone.model.fc_norm(tokens.mean(dim=1)))


def test_frozen_blocks_do_not_train_and_layer_decay_lowers_the_rate_downwards():
    learner = make_learner(make_config(bcb_lrscale=1.0, freeze_blocks=1, layer_decay=0.5), StubData([2]), micro_backbone(depth=3))
    learner.begin_task(0)
    trained = {name for name, p in learner.net.backbone.model.named_parameters() if p.requires_grad}
    assert trained and all(name.startswith(("blocks.1.", "blocks.2.", "norm.")) for name in trained)
    rates = [group["lr"] for group in learner.parameter_groups(0)]
    assert rates == [0.005, 0.01, 0.01]  # block 2, block 3 with the final norm, head


def test_checkpointed_activations_give_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        backbone = build_backbone(describe("vit_tiny_patch16_224", MICRO_VIT), pretrained=False, grad_checkpointing=checkpointing)
        backbone(torch.ones(2, 3, 16, 16)).sum().backward()
        gradients.append(backbone.model.blocks[0].attn.qkv.weight.grad)
    torch.testing.assert_close(*gradients)


def test_a_resnet_gives_pooled_features():
    backbone = build_backbone(describe("timm/resnet10t"), pretrained=False)
    assert backbone(torch.randn(2, 3, 32, 32)).shape == (2, backbone.dim)
