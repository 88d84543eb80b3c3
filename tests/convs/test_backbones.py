"""Backbones by name, by description and from files."""

import pytest
import torch
from safetensors.torch import save_file

from convs.backbone_entries import list_backbones
from convs.backbones import REGISTRY, BackboneEntry, build_backbone, check_finite, describe
from models.tools.dry_run import count_parameters, shape_learner
from tests.support import MICRO_VIT, StubData, learn, make_config, make_learner, micro_backbone, synthetic_learner
from utils.data.data_manager import DataManager
from utils.errors import UserError


@pytest.mark.parametrize("name", REGISTRY)
def test_registered_backbones_are_vit_b_16_with_a_fresh_norm(name):
    backbone = build_backbone(describe(name), pretrained=False, device="meta")
    assert (backbone.dim, backbone.image_size, backbone.channels) == (768, 224, 3)
    assert backbone.model.norm.eps == 1e-5
    assert sum(p.numel() for p in backbone.parameters()) == 85_798_656
    assert name in list_backbones() and REGISTRY[name].shape == (backbone.dim, backbone.image_size)


def test_a_plugins_backbone_that_does_not_say_its_shape_is_listed_with_it(monkeypatch):
    monkeypatch.setitem(REGISTRY, "mine", BackboneEntry("vit_tiny_patch16_224", MICRO_VIT))
    line = next(line for line in list_backbones().splitlines() if line.startswith("mine "))
    assert f"{MICRO_VIT['embed_dim']} dims, {MICRO_VIT['img_size']} px" in line


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


@pytest.mark.parametrize("name", ["timm/mobilenetv3_small_050", "timm/vgg11", "timm/efficientnet_b0", "timm/swin_tiny_patch4_window7_224"])
def test_the_dimension_is_that_of_the_features(name):
    backbone = build_backbone(describe(name), pretrained=False, device="meta").eval()
    assert backbone(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, backbone.dim)


def test_a_batch_of_one_image_trains_a_convolutional_network_by_its_running_statistics(caplog):
    backbone = build_backbone(describe("timm/resnet10t"), pretrained=False)
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    one = backbone.train()(image)
    one.sum().backward()
    assert all(module.training for module in backbone.modules())
    assert all(torch.equal(buffer, before[name]) for name, buffer in backbone.named_buffers())
    assert backbone.model.conv1[0].weight.grad.abs().sum() > 0
    assert caplog.text.count("a batch of one image has no statistics") == 1
    backbone(image)
    assert caplog.text.count("a batch of one image") == 1
    torch.testing.assert_close(one, backbone.eval()(image))


def test_two_images_still_move_the_running_statistics():
    backbone = build_backbone(describe("timm/resnet10t"), pretrained=False).train()
    before = backbone.model.bn1.running_mean.clone()
    backbone(torch.randn(2, 3, 32, 32))
    assert not torch.equal(backbone.model.bn1.running_mean, before)


def test_an_epoch_whose_last_batch_is_one_image_trains():
    dataset = {"name": "odd", "layout": "synthetic", "num_classes": 2, "image_size": 32, "train_per_class": 9, "test_per_class": 2,
               "train_transform": "none"}
    config = make_config(dataset=dataset, convnet_type="timm/resnet10t", init_cls=1, increment=1, batch_size=4)
    learner = make_learner(config, DataManager(config, 1993), build_backbone(describe("timm/resnet10t"), pretrained=False))
    learn(learner, [0])
    assert all(p.isfinite().all() for p in learner.net.parameters())


@pytest.mark.parametrize("weights", ["x" * 300 + ".pth", "none.pth", "~/none.pth", "", "a\0b.pth", "folder/none.pth"])
def test_a_file_of_weights_that_is_not_there_is_told_with_the_places_tried(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(UserError) as caught:
        build_backbone(describe("vit_tiny_patch16_224", MICRO_VIT, weights))
    told = str(caught.value)
    assert told.startswith("weights: ") and len(told) < 1500 and "set pretrained to false" in told
    if weights in ("none.pth", "folder/none.pth"):
        assert str(tmp_path / weights) in told and str(tmp_path / "pretrained" / weights) in told
    if weights.startswith("~"):
        assert str(tmp_path / "home" / "none.pth") in told


def test_a_folder_given_as_weights_is_told_with_the_files_in_it(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best.pth").write_bytes(b"x")
    with pytest.raises(UserError, match=r"run is a folder; name the file in it, for example best\.pth"):
        build_backbone(describe("vit_tiny_patch16_224", MICRO_VIT, str(tmp_path / "run")))


def test_the_home_sign_in_a_path_of_weights_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_file(micro_backbone(reset_norm=False).model.state_dict(), tmp_path / "mine.safetensors")
    backbone = build_backbone(describe("vit_tiny_patch16_224", MICRO_VIT, "~/mine.safetensors"))
    assert backbone.weights["source"] == "mine.safetensors" and backbone.weights["taken"] == "30 tensors"


def test_a_key_without_a_file_is_told():
    with pytest.raises(UserError, match="weights_key: got 'teacher' without a file"):
        describe("vit_tiny_patch16_224", MICRO_VIT, key="teacher")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_features_that_are_no_finite_numbers_are_told_with_their_number(value):
    features = torch.ones(5, 3)
    check_finite(features)
    features[1, 2] = features[4, 0] = value
    with pytest.raises(UserError, match=r"features of 2 of 5 images.*precision 16-mixed"):
        check_finite(features, "16-mixed")


def test_a_learner_whose_backbone_gives_nan_says_so():
    learner = synthetic_learner("ncm")
    with torch.no_grad():
        learner.net.backbone.model.norm.weight[0] = float("nan")
    with pytest.raises(UserError, match="the backbone's features of 24 of 24 images are not finite"):
        learn(learner, [0])
