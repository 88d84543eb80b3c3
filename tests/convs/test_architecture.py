"""Which images a backbone takes, and which arguments make one: tried without memory, told in one message."""

import json
import re

import pytest

from convs.architecture import check_architecture, check_image_size
from models.tools.build import check_images_fit, make_learner
from models.tools.dry_run import describe_run
from tests.support import MICRO_VIT, make_config
from trainer import make_fabric
from utils.errors import UserError

VIT = "vit_tiny_patch16_224"
THIN = {"depth": 1, "embed_dim": 16, "num_heads": 2}


def synthetic(size):
    return {"name": "made", "layout": "synthetic", "num_classes": 4, "image_size": size}


def of_size(size, name=VIT, **args):
    check_image_size(name, args, size, "the images of data set d", lambda model: [f"images of {model}"])


@pytest.mark.parametrize(("size", "args", "takes"), [
    (32, {}, 224), (225, THIN, 224), (224, {"img_size": 32, "patch_size": 8, **THIN}, 32),
    (28, {"img_size": 32, "patch_size": 4, **THIN}, 32)])
def test_images_of_another_size_than_a_vit_takes_are_told_with_the_ways_out(size, args, takes):
    with pytest.raises(UserError) as caught:
        of_size(size, **args)
    told = str(caught.value)
    assert f"image_size: got {size} x {size} px, the size of the images of data set d" in told
    assert f"the backbone {VIT} takes {takes} x {takes} px" in told and f"Ways out: images of {takes}" in told and "timm/resnet50" in told
    offered = json.loads(re.search(r'"args": (\{.*?\})', told)[1])
    of_size(size, **offered)  # what is offered is a way out


@pytest.mark.parametrize(("name", "size"), [("resnet10t", 17), ("resnet10t", 32), ("resnet10t", 224), ("efficientnet_b0", 33), (VIT, 224)])
def test_images_of_any_size_that_works_are_accepted(name, size):
    of_size(size, name)


def test_a_vit_that_takes_every_multiple_of_its_patch_is_asked_and_not_guessed():
    of_size(64, dynamic_img_size=True, **THIN)
    with pytest.raises(UserError, match="divisible by patch size"):
        of_size(30, dynamic_img_size=True, **THIN)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "levit_128s"])
def test_other_networks_of_one_size_are_told_too(name):
    with pytest.raises(UserError, match=rf"the backbone {name} takes 224 x 224 px"):
        of_size(32, name)


def test_a_backbone_for_images_that_are_not_square_is_told():
    with pytest.raises(UserError, match=r"takes 224 x 112 px.*Ways out: a backbone for 224 px"):
        of_size(224, img_size=[224, 112], **THIN)


@pytest.mark.parametrize(("args", "told"), [
    ({"in_chans": 2}, "in_chans 2, allowed: 1 .grey. or 3 .colour."),
    ({"in_chans": 4}, "in_chans 4"),
    ({"global_pool": ""}, r"features of shape \(197, 192\) per image"),
    ({"global_pool": "token", "class_token": False}, "timm cannot make"),
    ({"depht": 3}, "timm cannot make.*depht"),
    ({"patch_size": 0}, "timm cannot make"),
])
def test_arguments_that_make_no_backbone_are_told(args, told):
    with pytest.raises(UserError, match=told):
        check_architecture(VIT, args)


def test_a_convolutional_network_must_pool_to_one_vector():
    with pytest.raises(UserError, match=r"features of shape \(512, 6, 6\) per image, allowed: one vector.*global_pool"):
        check_architecture("resnet10t", {"global_pool": ""})
    for pool in ("max", "catavgmax"):
        check_architecture("resnet10t", {"global_pool": pool})


def test_run_and_dry_run_tell_the_size_before_anything_is_loaded():
    config = make_config(dataset=synthetic(32), convnet_type={"timm": VIT, "args": MICRO_VIT, "weights": "not/there.pth"}, pretrained=True)
    for act in (check_images_fit, describe_run, lambda c: make_learner(c, 1993, make_fabric("cpu", "32-true", False))):
        with pytest.raises(UserError, match=r'got 32 x 32 px.*made.*takes 16 x 16 px.*"image_size": 16 in the "dataset" object'):
            act(config)


@pytest.mark.parametrize(("dataset", "model", "other"), [("cifar100", VIT, "cifar100_224"), ("cifar10_224", None, "cifar10")])
def test_a_registered_set_is_told_its_sibling_of_the_right_size(dataset, model, other):
    spec = f"timm/{model}" if model else {"timm": VIT, "args": {"img_size": 32, "patch_size": 8}}
    with pytest.raises(UserError, match=rf'Ways out: "dataset": "{other}"; or'):
        check_images_fit(make_config(dataset=dataset, convnet_type=spec))


def test_images_that_are_not_there_yet_are_not_judged(tmp_path):
    for layout in ("npz", "folders"):
        check_images_fit(make_config(dataset={"name": "later", "layout": layout, "root": str(tmp_path / "none"), "num_classes": 4}))
