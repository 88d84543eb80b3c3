"""What a run's network is, in words."""

from __future__ import annotations

import pytest

from utils.report.describe import backbone_words


@pytest.mark.parametrize(("convnet_type", "words"), [
    ("vit-b-p16", "vit-b-p16"),
    ({"timm": "vit_tiny_patch16_224"}, "vit_tiny_patch16_224"),
    ({"timm": "vit_tiny_patch16_224", "args": {"img_size": 28, "embed_dim": 128, "depth": 5}, "weights": "x/vit_demo_glyphs.safetensors"},
     "ViT, 128 wide, 5 blocks, 28 px, vit_demo_glyphs weights"),
    ({"timm": "my_net", "args": {"depth": 2}}, "my_net, 2 blocks"),
])
def test_a_custom_model_is_told_by_its_size_and_its_weights(convnet_type: object, words: str) -> None:
    assert backbone_words({"convnet_type": convnet_type}) == words


def test_random_weights_are_said_to_be_random() -> None:
    assert backbone_words({"convnet_type": {"timm": "vit_x", "args": {"depth": 2}}, "pretrained": False}) == "ViT, 2 blocks, random weights"
