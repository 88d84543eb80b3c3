"""Every part that a first session can adapt, and what all of them must survive."""

import copy
import io

import pytest
import torch

from convs.backbones import build_backbone, describe
from convs.first_session import adapt
from convs.parts import added_parameters, features_of_passes, switched_off
from convs.states import changed, under_state
from tests.support import MICRO_VIT, micro_backbone
from utils.errors import UserError

PARTS = ("adapter", "ssf", "vpt_shallow", "vpt_deep", "lora")
KINDS = (*PARTS, "full", "none")
IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def adapted(kind, seed=0, moved=True, **args):
    """A micro ViT with the part `kind`, all of whose numbers are drawn, so that it acts."""
    backbone = micro_backbone(**args).eval()
    names = adapt(backbone, kind, width=5, tokens=3, generator=torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed + 1)
    for name, parameter in backbone.model.named_parameters():
        parameter.requires_grad_(name in names)
        if moved and name in names:
            parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return backbone, names


@pytest.mark.parametrize("kind", PARTS)
def test_a_part_adds_parameters_and_renames_none(kind):
    plain = micro_backbone()
    backbone, names = adapted(kind)
    own = dict(plain.model.named_parameters())
    assert names and set(names) == added_parameters(backbone.model)
    assert set(dict(backbone.model.named_parameters())) - set(names) == set(own)


@pytest.mark.parametrize("kind", ["adapter", "lora"])
def test_adapters_and_lora_change_nothing_at_first(kind):
    torch.testing.assert_close(adapted(kind, moved=False)[0](IMAGES), micro_backbone().eval()(IMAGES))


@pytest.mark.parametrize("kind", PARTS)
def test_switched_off_the_features_are_the_pretrained_ones_bit_for_bit_and_switched_on_they_are_not(kind):
    plain = micro_backbone().eval()(IMAGES)
    backbone, _ = adapted(kind)
    with switched_off(backbone.model):
        assert torch.equal(backbone(IMAGES), plain)
    assert not torch.allclose(backbone(IMAGES), plain, atol=1e-3)


def test_both_passes_stand_side_by_side():
    backbone, _ = adapted("adapter")
    both = features_of_passes(backbone, IMAGES, [switched_off(backbone.model), switched_off(torch.nn.Identity())])
    assert torch.equal(both, torch.cat([micro_backbone().eval()(IMAGES), backbone(IMAGES)], dim=1))


@pytest.mark.parametrize("kind", PARTS)
def test_only_the_part_gets_gradients_and_all_of_it_does(kind):
    backbone, names = adapted(kind)
    backbone(IMAGES).square().sum().backward()
    moving = {name for name, p in backbone.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moving == set(names)


@pytest.mark.parametrize("kind", PARTS)
def test_state_survives_save_and_load_bit_for_bit(kind):
    saved, loaded = adapted(kind)[0], adapted(kind, seed=7)[0]
    stream = io.BytesIO()
    torch.save(saved.state_dict(), stream)
    loaded.load_state_dict(torch.load(io.BytesIO(stream.getvalue()), weights_only=True))
    assert torch.equal(loaded(IMAGES), saved(IMAGES))


@pytest.mark.parametrize("kind", PARTS)
def test_a_copy_is_independent(kind):
    backbone, names = adapted(kind)
    before = backbone(IMAGES)
    twin = copy.deepcopy(backbone)
    assert torch.equal(twin(IMAGES), before)
    for name, parameter in twin.model.named_parameters():
        if name in names:
            parameter.data.mul_(3).add_(0.5)
    assert torch.equal(backbone(IMAGES), before) and not torch.allclose(twin(IMAGES), before)


@pytest.mark.parametrize("kind", ["adapter", "vpt_shallow"])  # one that changes layers, one that changes the number of tokens
def test_the_exported_program_gives_the_same_for_any_number_of_images(kind):
    backbone, _ = adapted(kind)
    program = torch.export.export(backbone, (IMAGES,), dynamic_shapes=({0: torch.export.Dim("images", min=1)},))
    for count in (1, 3):
        torch.testing.assert_close(program.module()(IMAGES[:count]), backbone(IMAGES[:count]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", PARTS)
def test_recomputed_activations_give_the_same_gradients(kind):
    gradients = []
    for recompute in (False, True):
        backbone, names = adapted(kind)
        backbone.model.set_grad_checkpointing(recompute)
        backbone(IMAGES).square().sum().backward()
        gradients.append({name: p.grad for name, p in backbone.model.named_parameters() if name in names})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_another_state_inside_a_recomputed_step_is_a_clear_error():
    backbone, _ = adapted("adapter")
    backbone.model.set_grad_checkpointing()
    with pytest.raises(UserError, match="grad_checkpointing: got true"), switched_off(backbone.model):
        pass
    with torch.no_grad(), switched_off(backbone.model):
        backbone(IMAGES)


@pytest.mark.parametrize("kind", PARTS)
def test_parts_run_in_inference_mode_and_in_bfloat16(kind):
    backbone, _ = adapted(kind)
    with torch.inference_mode():
        torch.testing.assert_close(backbone(IMAGES), backbone(IMAGES))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = backbone(IMAGES)
    torch.testing.assert_close(half.float(), backbone(IMAGES).detach(), atol=0.15, rtol=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_alone_are_enough(kind):
    backbone = build_backbone(describe("vit_tiny_patch16_224", MICRO_VIT), pretrained=False, device="meta")
    names = adapt(backbone, kind)
    assert all(parameter.is_meta for parameter in backbone.parameters())
    assert backbone(torch.empty(2, 3, 16, 16, device="meta")).shape == (2, backbone.dim)
    assert (len(names) == 0) is (kind == "none")


@pytest.mark.parametrize("kind", ["adapter"])
def test_a_compiled_backbone_gives_the_same_switched_on_and_off(kind):
    backbone, _ = adapted(kind, depth=1)
    expected, plain = backbone(IMAGES), micro_backbone(depth=1).eval()(IMAGES)
    backbone.speed_up(compile=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(backbone(IMAGES), expected)
        with switched_off(backbone.model):
            torch.testing.assert_close(backbone(IMAGES), plain)


@pytest.mark.parametrize("kind", PARTS)
def test_parts_begin_as_the_generator_says(kind):
    first, again, other = (adapted(kind, seed=seed, moved=False)[0].model for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    differs = any(not torch.equal(a, b) for a, b in zip(first.state_dict().values(), other.state_dict().values(), strict=True))
    assert differs is not kind.startswith("vpt")  # prompts begin at zero


def test_everything_adapted_is_a_state_beside_the_pretrained_one():
    backbone, names = adapted("full")
    pretrained = {name: tensor.clone() for name, tensor in micro_backbone().state_dict().items()}
    assert set(names) == set(dict(backbone.model.named_parameters()))
    with under_state(backbone, changed(pretrained, backbone.state_dict())):
        assert torch.equal(backbone(IMAGES), micro_backbone().eval()(IMAGES))


@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize("name", ["timm/resnet18", "timm/swin_tiny_patch4_window7_224", "timm/mixer_b16_224"])
def test_a_backbone_without_transformer_blocks_is_a_clear_error(name, kind):
    with pytest.raises(UserError, match=r"choose a|is no ViT"):
        adapt(build_backbone(describe(name), pretrained=False, device="meta"), kind)


@pytest.mark.parametrize(("name", "kinds"), [
    ("timm/beit_base_patch16_224", ("ssf", "vpt_deep", "lora")),
    ("timm/vit_relpos_small_patch16_rpn_224", ("adapter",)),
    ("timm/vit_relpos_small_patch16_224", ("vpt_shallow", "vpt_deep")),
    ("timm/vit_small_patch16_dinov3", ("vpt_shallow",)),
    ("timm/xcit_nano_12_p16_224", ("ssf", "vpt_shallow", "vpt_deep")),
])
def test_a_vit_whose_blocks_do_not_fit_a_part_is_a_clear_error(name, kinds):
    for kind in kinds:
        with pytest.raises(UserError, match="choose"):
            adapt(build_backbone(describe(name), pretrained=False, device="meta"), kind)


@pytest.mark.parametrize(("name", "kinds"), [
    ("timm/vit_small_patch14_dinov2", ["adapter", "lora"]), ("timm/deit3_small_patch16_224", ["ssf", "vpt_deep"]),
    ("timm/vit_base_patch32_clip_224", ["vpt_shallow"]),
    ("timm/deit_tiny_distilled_patch16_224", PARTS), ("timm/cait_xxs24_224", ["vpt_deep"]), ("timm/vit_tiny_r_s16_p8_224", ["ssf"]),
    ("timm/beit_base_patch16_224", ["adapter"]), ("timm/samvit_base_patch16", ["adapter"]), ("timm/vit_base_patch16_rpn_224", ["ssf"])])
def test_parts_fit_other_vits(name, kinds):
    for kind in kinds:
        backbone = build_backbone(describe(name), pretrained=False, device="meta")
        assert adapt(backbone, kind)
        assert backbone(torch.empty(1, 3, backbone.image_size, backbone.image_size, device="meta")).shape == (1, backbone.dim)


def test_an_unknown_kind_is_a_clear_error():
    with pytest.raises(UserError, match="first_session: got 'adaptor', allowed: none, adapter"):
        adapt(micro_backbone(), "adaptor")
