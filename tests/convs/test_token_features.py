"""Joined features of one forward pass, against the same numbers read by plain hooks."""

import copy

import pytest
import torch
from torch.nn import functional as F

from convs.backbones import Backbone, build_backbone, describe
from convs.lora import LoRALinear, add_lora
from convs.token_features import TokenBackbone, TokenFeatures
from tests.support import MICRO_VIT, micro_backbone
from utils.errors import UserError

NAMES = ["cls", "mean", "std", "mean@-2", "std@-2", "std@-1", "mean@-3"]
THIN = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
VITS = {  # class token, pooled with and without one, registers, a distillation token, rotary positions, relative positions
    "class token": ("vit_tiny_patch16_224", {}),
    "no class token": ("vit_base_patch16_gap_224", {}),
    "averaged beside a class token": ("vit_tiny_patch16_224", {"global_pool": "avg"}),
    "registers": ("vit_small_patch14_reg4_dinov2", {}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "attention pooling": ("vit_base_patch16_siglip_224", {}),
    "EVA": ("eva02_tiny_patch14_224", {}),
    "BEiT": ("beit_base_patch16_224", {}),
}


def make(name, **args):
    backbone = build_backbone(describe(name, args), pretrained=False).eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    return backbone


def pictures(size=32, count=3):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def by_hooks(model, modules, images):
    """What leaves each of `modules` in one pass of the whole model, and the model's own output."""
    seen, handles = {}, []
    for key, module in modules.items():
        handles.append(module.register_forward_hook(lambda _, args, out, key=key: seen.__setitem__(key, out)))
    output = model(images)
    for handle in handles:
        handle.remove()
    return seen, output


def spread(tokens):
    """Square root of the mean squared distance from the mean."""
    return (tokens - tokens.mean(dim=1, keepdim=True)).square().mean(dim=1).sqrt()


@pytest.mark.parametrize("kind", VITS)
def test_the_parts_of_a_vit_are_what_hooks_read(kind):
    name, args = VITS[kind]
    backbone, images = make(name, **THIN, **args), pictures()
    model = backbone.model
    fc_norm = isinstance(model.norm, torch.nn.Identity)
    seen, own = by_hooks(model, {"last": model.norm, **{i: block for i, block in enumerate(model.blocks)}}, images)
    tokens = model.fc_norm(seen["last"]) if fc_norm else seen["last"]
    patches = tokens[:, model.num_prefix_tokens:]
    inner = {i: F.layer_norm(seen[i][:, model.num_prefix_tokens:], (24,), eps=1e-6) for i in range(3)}
    expected = [own, patches.mean(dim=1), spread(patches), inner[1].mean(dim=1), spread(inner[1]), spread(inner[2]), inner[0].mean(dim=1)]
    read = TokenFeatures(backbone, NAMES)
    found = read(backbone, images)
    assert read.dim == found.shape[1] == 7 * 24
    torch.testing.assert_close(found, torch.cat(expected, dim=1), atol=1e-5, rtol=1e-5)
    assert torch.equal(found[:, read.slices["cls"]], backbone(images))


def test_the_class_token_of_an_inner_block_is_read_too():
    backbone, images = make("vit_tiny_patch16_224", **THIN), pictures()
    seen, _ = by_hooks(backbone.model, {"block": backbone.model.blocks[1]}, images)
    found = TokenFeatures(backbone, ["cls@-2", "cls@1"])
    expected = F.layer_norm(seen["block"][:, 0], (24,), eps=1e-6)
    torch.testing.assert_close(found(backbone, images), expected.repeat(1, 2), atol=1e-5, rtol=1e-5)


def test_the_parts_of_a_resnet_are_means_and_deviations_over_positions():
    backbone, images = make("resnet10t"), pictures(64)
    model = backbone.model
    seen, own = by_hooks(model, {"layer2": model.layer2, "layer3": model.layer3, "layer4": model.layer4}, images)
    maps = {key: found.flatten(2).transpose(1, 2) for key, found in seen.items()}
    inner = {key: F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6) for key, tokens in maps.items()}
    expected = [own, maps["layer4"].mean(dim=1), spread(maps["layer4"]), inner["layer3"].mean(dim=1), spread(inner["layer3"]),
                spread(inner["layer4"]), inner["layer2"].mean(dim=1)]
    read = TokenFeatures(backbone, NAMES)
    assert read.dim == sum(part.shape[1] for part in expected)
    torch.testing.assert_close(read(backbone, images), torch.cat(expected, dim=1), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["convnext_atto", "efficientnet_b0", "mobilenetv3_small_050", "swin_tiny_patch4_window7_224"])
def test_other_networks_of_maps_give_as_many_columns_as_they_say(name):
    backbone = build_backbone(describe(f"timm/{name}"), pretrained=False, device="meta").eval()
    read = TokenFeatures(backbone, NAMES)
    found = read(backbone, torch.empty(2, 3, 224, 224, device="meta"))
    assert found.shape == (2, read.dim) and found.is_meta


def test_cls_and_mean_are_the_feature_beside_the_mean_patch_token():
    backbone, images = micro_backbone(), pictures(16)
    tokens = backbone.model.forward_features(images)
    expected = torch.cat([backbone.model.forward_head(tokens, pre_logits=True), tokens[:, 1:].mean(dim=1)], dim=1)
    assert torch.equal(TokenFeatures(backbone, ["cls", "mean"])(backbone, images), expected)
    joined = TokenBackbone(backbone, ["cls", "mean"])
    assert joined.dim == 2 * backbone.dim and torch.equal(joined(images), expected)


def test_everything_is_read_in_one_pass():
    backbone = make("vit_tiny_patch16_224", **THIN)
    passes = []
    handles = [module.register_forward_hook(lambda *_: passes.append(1)) for module in (backbone.model.patch_embed, *backbone.model.blocks)]
    TokenFeatures(backbone, NAMES)(backbone, pictures())
    assert len(passes) == len(handles) == 4


def test_wrapped_blocks_are_read_and_every_factor_gets_its_gradient():
    backbone, images = make("vit_tiny_patch16_224", **THIN), pictures()
    add_lora(backbone.model, rank=2, scale=0.8, targets=["qkv", "fc1", "fc2"])
    layers = [module for module in backbone.modules() if isinstance(module, LoRALinear)]
    for layer in layers:
        torch.nn.init.normal_(layer.lora_B, std=0.1, generator=torch.Generator().manual_seed(0))
    read = TokenFeatures(backbone, NAMES)
    before = read(backbone, images)
    before.square().sum().backward()
    assert len(layers) == 9 and all(layer.lora_B.grad.abs().sum() > 0 for layer in layers)
    with torch.no_grad():
        layers[0].lora_B.zero_()
    assert not torch.allclose(read(backbone, images), before)


def test_gradients_agree_with_differences():
    backbone = build_backbone(describe("vit_tiny_patch16_224", {**MICRO_VIT, "in_chans": 1}), pretrained=False).double().eval()
    read = TokenFeatures(backbone, ["cls", "mean", "std", "std@-2"])
    images = torch.randn(1, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    assert read(backbone, images).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x: read(backbone, x), images, fast_mode=True)


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_positions_that_all_agree_have_no_deviation_and_a_finite_gradient(name):
    backbone = build_backbone(describe(name, MICRO_VIT if "vit" in name else {}), pretrained=False).eval()
    images = torch.zeros(2, 3, 16, 16, requires_grad=True)
    found = TokenFeatures(backbone, ["std", "std@-1"])(backbone, images)
    found.sum().backward()
    assert found.isfinite().all() and images.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in backbone.parameters())


def test_one_position_has_deviation_zero():
    backbone = make("resnet10t")
    found = TokenFeatures(backbone, ["std"])(backbone, pictures(32))  # the last map is one pixel
    torch.testing.assert_close(found, torch.zeros_like(found), atol=1e-5, rtol=0)


def test_a_copy_of_the_backbone_is_read_by_the_same_reader():
    backbone, images = make("vit_tiny_patch16_224", **THIN), pictures()
    read = TokenFeatures(backbone, NAMES)
    copied, before = copy.deepcopy(backbone), read(backbone, images)
    with torch.no_grad():
        backbone.model.norm.weight.mul_(2)
    assert torch.equal(read(copied, images), before) and not torch.equal(read(backbone, images), before)


def test_autocast_gives_float32_close_to_full_precision():
    backbone, images = make("vit_tiny_patch16_224", **THIN), pictures()
    read = TokenFeatures(backbone, NAMES)
    with torch.no_grad():
        full = read(backbone, images)
        with torch.autocast("cpu", torch.bfloat16):
            half = read(backbone, images)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, atol=0.1, rtol=0.1)


def test_training_on_a_batch_of_one_image_works_as_for_the_plain_feature():
    backbone = make("resnet10t").train()
    assert TokenFeatures(backbone, NAMES)(backbone, pictures(32, count=1)).isfinite().all()
    assert all(module.training for module in backbone.modules())


def test_checkpointed_activations_give_the_same_features_and_gradients():
    gradients = []
    for checkpointing in (False, True):
        backbone = build_backbone(describe("vit_tiny_patch16_224", THIN), pretrained=False, grad_checkpointing=checkpointing)
        TokenFeatures(backbone, NAMES)(backbone, pictures()).square().sum().backward()
        gradients.append(backbone.model.blocks[0].attn.qkv.weight.grad)
    torch.testing.assert_close(*gradients)


class Program(torch.nn.Module):
    def __init__(self, backbone: Backbone, names: list[str]) -> None:
        super().__init__()
        self.backbone, self.read = backbone, TokenFeatures(backbone, names)

    def forward(self, images):
        return self.read(self.backbone, images)


@pytest.mark.parametrize(("name", "args"), [("vit_tiny_patch16_224", THIN), ("resnet10t", {})])
def test_an_exported_program_gives_the_same_for_any_number_of_images(name, args):
    program = Program(make(name, **args), NAMES).eval()
    exported = torch.export.export(program, (pictures(),), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},)).module()
    for count in (1, 5):
        images = pictures(count=count)
        torch.testing.assert_close(exported(images), program(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("names", "told"), [
    (["men"], "got 'men', allowed: cls, mean, std.*did you mean 'mean'"),
    (["mean@"], "got 'mean@'"),
    (["mean@x"], "got 'mean@x'"),
    (["mean@-2.0"], "got 'mean@-2.0'"),
    (["CLS"], "got 'CLS'"),
    ([""], "got ''"),
    (["mean@-4"], "got 'mean@-4', allowed for VisionTransformer: @-3 to @-1, its blocks"),
    (["std@3"], "got 'std@3', allowed for VisionTransformer"),
    (["mean@99999"], "got 'mean@99999'"),
    (["cls", "mean", "cls"], "each once"),
    ([], "one or more of"),
])
def test_parts_that_are_not_there_are_told(names, told):
    with pytest.raises(UserError, match=f"features: .*{told}"):
        TokenFeatures(make("vit_tiny_patch16_224", **THIN), names)


def test_class_tokens_that_are_not_there_are_told():
    for name, args in (("resnet10t", {}), ("vit_base_patch16_gap_224", THIN)):
        with pytest.raises(UserError, match=r"got 'cls@-2', but \w+ has no class token there; use mean@-2 or std@-2"):
            TokenFeatures(make(name, **args), ["cls@-2"])
    with pytest.raises(UserError, match=r"got 'mean@-6', allowed for ResNet: @-5 to @-1, its stages"):
        TokenFeatures(make("resnet10t"), ["mean@-6"])
