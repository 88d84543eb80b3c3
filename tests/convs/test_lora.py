"""LoRA against the release's layers and its own definition."""

import numpy as np
import pytest
import torch
from torch import nn

from convs.backbones import build_backbone, describe
from convs.lora import LoRALinear, add_lora, merge_lora
from tests.support import load_parity, micro_backbone
from utils.errors import UserError


def lora_layer(arrays, weights, lora, prefix):
    base = nn.Linear(*reversed(arrays[f"{prefix}/{weights}.weight"].shape))
    base.load_state_dict({kind: torch.from_numpy(arrays[f"{prefix}/{weights}.{kind}"]) for kind in ("weight", "bias")})
    layer = LoRALinear(base, rank=4, scale=0.8)
    layer.lora_A.data = torch.from_numpy(arrays[f"{prefix}/{lora}_A"])
    layer.lora_B.data = torch.from_numpy(arrays[f"{prefix}/{lora}_B"])
    return layer


def test_mlp_output_and_gradients_follow_the_release():
    arrays, _ = load_parity("7_lora")
    fc1, fc2 = lora_layer(arrays, "fc1", "lora_1", "mlp"), lora_layer(arrays, "fc2", "lora_2", "mlp")
    x = torch.from_numpy(arrays["x"]).requires_grad_()
    out = fc2(torch.nn.functional.gelu(fc1(x)))
    np.testing.assert_allclose(out.detach(), arrays["mlp_out"], atol=1e-5)
    out.square().sum().backward()
    np.testing.assert_allclose(x.grad, arrays["mlp_dx"], atol=1e-4, rtol=1e-5)
    for layer, name in ((fc1, "lora_1"), (fc2, "lora_2")):
        np.testing.assert_allclose(layer.lora_A.grad, arrays[f"mlp_grad/{name}_A"], atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(layer.lora_B.grad, arrays[f"mlp_grad/{name}_B"], atol=1e-4, rtol=1e-4)


def test_attention_output_and_gradients_follow_the_release():
    arrays, _ = load_parity("7_lora")
    attention = micro_backbone().model.blocks[0].attn
    attention.qkv = lora_layer(arrays, "qkv", "lora", "attn")
    attention.proj.load_state_dict({kind: torch.from_numpy(arrays[f"attn/proj.{kind}"]) for kind in ("weight", "bias")})
    x = torch.from_numpy(arrays["x"]).requires_grad_()
    out = attention(x)
    np.testing.assert_allclose(out.detach(), arrays["attn_out"], atol=1e-5)
    out.square().sum().backward()
    np.testing.assert_allclose(x.grad, arrays["attn_dx"], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(attention.qkv.lora_A.grad, arrays["attn_grad/lora_A"], atol=1e-4, rtol=1e-5)
    np.testing.assert_allclose(attention.qkv.lora_B.grad, arrays["attn_grad/lora_B"], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("weights", "lora", "prefix"), [("qkv", "lora", "attn"), ("fc1", "lora_1", "mlp"), ("fc2", "lora_2", "mlp")])
def test_A_starts_as_the_top_singular_vectors(weights, lora, prefix):
    arrays, _ = load_parity("7_lora")
    layer = lora_layer(arrays, weights, lora, prefix)
    layer.reset_A()
    ours, theirs = layer.lora_A.detach().numpy(), arrays[f"{prefix}_svd/{lora}_A"]
    signs = np.sign((ours * theirs).sum(axis=1, keepdims=True))  # LAPACK chooses the sign of each row
    np.testing.assert_allclose(ours * signs, theirs, atol=1e-4)


def test_lora_changes_nothing_at_first():
    images = torch.randn(2, 3, 16, 16)
    backbone = micro_backbone()
    before = backbone(images)
    add_lora(backbone.model, rank=4, scale=0.8, targets=["qkv", "fc1", "fc2"])
    torch.testing.assert_close(backbone(images), before)


def test_merged_gives_the_same_features():
    backbone = micro_backbone()
    add_lora(backbone.model, rank=4, scale=0.8, targets=["qkv", "fc1", "fc2"])
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    images = torch.randn(4, 3, 16, 16)
    merged = merge_lora(backbone)
    assert not any(isinstance(module, LoRALinear) for module in merged.modules())
    torch.testing.assert_close(merged(images), backbone(images), atol=1e-5, rtol=0)
    assert any(isinstance(module, LoRALinear) for module in backbone.modules())


def test_no_gradient_of_the_size_of_the_frozen_weight_is_formed():
    layer = LoRALinear(nn.Linear(16, 48), rank=4, scale=0.8)
    layer.weight.requires_grad_(False)
    layer(torch.randn(3, 16)).sum().backward()
    assert layer.weight.grad is None and layer.lora_A.grad is not None


@pytest.mark.parametrize("name", ["timm/resnet18", "timm/beit_base_patch16_224", "timm/swin_tiny_patch4_window7_224"])
def test_a_backbone_without_plain_blocks_is_a_clear_error(name):
    model = build_backbone(describe(name), pretrained=False, device="meta").model
    with pytest.raises(UserError, match=r"LoRA|lora_targets"):
        add_lora(model, rank=4, scale=0.8)


@pytest.mark.parametrize("name", ["timm/vit_small_patch14_dinov2", "timm/deit3_small_patch16_224", "timm/vit_base_patch32_clip_224"])
def test_lora_fits_other_vits(name):
    model = build_backbone(describe(name), pretrained=False, device="meta").model
    add_lora(model, rank=4, scale=0.8, targets=["qkv", "fc1", "fc2"])
    assert sum(isinstance(module, LoRALinear) for module in model.modules()) == 3 * len(model.blocks)


@pytest.mark.parametrize("targets", [["q"], ["k", "v"], ["v", "fc2"]])
def test_targets_by_name_correct_their_rows_alone(targets):
    backbone = micro_backbone().eval()
    plain = backbone.model.blocks[0].attn.qkv.weight.clone()
    add_lora(backbone.model, rank=3, scale=0.5, targets=targets, start="kaiming", generator=torch.Generator().manual_seed(0))
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.5)
    merged = merge_lora(backbone)
    moved = (merged.model.blocks[0].attn.qkv.weight - plain).abs().sum(dim=1).view(3, -1).sum(dim=1) > 0  # q, k, v
    assert [name for name, moves in zip("qkv", moved.tolist(), strict=True) if moves] == [t for t in targets if len(t) == 1]
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(merged(images), backbone(images), atol=1e-5, rtol=1e-5)
    assert torch.equal(backbone.model.blocks[0].attn.qkv.weight, plain)


def test_A_starts_as_it_is_told_to():
    base = nn.Linear(16, 48)
    bound = 1 / 4  # Kaiming-uniform, a = sqrt 5: 1 / sqrt(in)
    kaiming = [LoRALinear(base, 4, 1.0, "kaiming", torch.Generator().manual_seed(seed)).lora_A for seed in (0, 0, 1)]
    assert torch.equal(kaiming[0], kaiming[1]) and not torch.equal(kaiming[0], kaiming[2])
    assert 0.8 * bound < kaiming[0].abs().max() <= bound
    assert not LoRALinear(base, 4, 1.0, "zero").lora_A.any()
    top = LoRALinear(base, 4, 1.0).lora_A
    torch.testing.assert_close(top @ top.T, torch.eye(4), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("targets", "message"), [
    (["qkv", "v"], "not both"), (["proj"], "lora_targets: got 'proj', allowed: qkv, q, k, v, fc1, fc2")])
def test_targets_that_do_not_go_together_are_a_clear_error(targets, message):
    with pytest.raises(UserError, match=message):
        add_lora(micro_backbone().model, rank=4, scale=0.8, targets=targets)


@pytest.mark.parametrize("targets", [["qkv"], ["q"], ["fc1"]])
def test_a_rank_above_the_layer_s_smaller_side_is_a_clear_error(targets):
    with pytest.raises(UserError, match="lora_rank: got 17, allowed: 1 to 16"):
        add_lora(micro_backbone().model, rank=17, scale=0.8, targets=targets)
