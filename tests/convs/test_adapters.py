"""Adapters against the formula written out block by block, and several of them side by side."""

import io
import math

import pytest
import torch

from convs.adapters import Adapters, put_adapters
from convs.parts import features_of_passes
from convs.states import mean_state
from tests.support import micro_backbone
from utils.errors import UserError

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def with_adapters(names=("0", "1"), seed=0, **args):
    """A micro ViT with adapters of random numbers."""
    backbone = micro_backbone(**args).eval()
    adapters = put_adapters(backbone.model, 5)
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        adapters.add(name, generator)
        for parameter in adapters.parameters(name):
            parameter.data.add_(torch.randn(parameter.shape, generator=generator))
    return backbone, adapters


def by_hand(model, name, images):
    x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
    for block in model.blocks:
        x = x + block.ls1(block.attn(block.norm1(x)))
        down, up = block.adapters[name].down, block.adapters[name].up
        low = (x @ down.weight.T + down.bias).clamp_min(0)
        x = x + block.ls2(block.mlp(block.norm2(x))) + 0.1 * (low @ up.weight.T + up.bias)
    return model.norm(x)[:, 0]


@pytest.mark.parametrize("args", [{}, {"init_values": 0.3}])
def test_the_selected_adapter_adds_what_the_formula_says(args):
    backbone, adapters = with_adapters(**args)
    for name in ("0", "1"):
        adapters.select(name)
        torch.testing.assert_close(backbone(IMAGES), by_hand(backbone.model, name, IMAGES))
    adapters.select(None)
    assert torch.equal(backbone(IMAGES), micro_backbone(**args).eval()(IMAGES))


def test_a_new_adapter_begins_as_the_papers_say():
    adapters = put_adapters(micro_backbone().model, 400)
    adapters.add(0, torch.Generator().manual_seed(0))
    adapter = adapters.blocks[0]["0"]
    bound = 1 / math.sqrt(16)  # Kaiming-uniform, a = sqrt 5: sqrt(6 / ((1 + 5) fan_in))
    assert adapter.down.weight.abs().max() <= bound and adapter.down.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert not any(tensor.any() for tensor in (adapter.down.bias, adapter.up.weight, adapter.up.bias))


def test_dropout_acts_in_training_alone_and_on_the_hidden_layer():
    backbone, adapters = with_adapters(["0"])
    adapters.select(0)
    backbone.train()
    torch.manual_seed(0)
    first = backbone(IMAGES)
    assert not torch.allclose(first, backbone(IMAGES))
    assert torch.equal(backbone.eval()(IMAGES), backbone(IMAGES))


def test_one_pass_with_each_gives_their_features_side_by_side_and_selects_none_of_them():
    backbone, adapters = with_adapters()
    adapters.select("1")
    together = features_of_passes(backbone, IMAGES, (adapters.using(name) for name in (None, 0, 1)))
    assert adapters.active == "1" and together.shape == (3, 3 * backbone.dim)
    parts = [micro_backbone().eval()(IMAGES), *(by_hand(backbone.model, name, IMAGES) for name in "01")]
    torch.testing.assert_close(together, torch.cat(parts, dim=1))


def test_only_the_selected_adapter_gets_gradients():
    backbone, adapters = with_adapters()
    adapters.select(1)
    backbone(IMAGES).sum().backward()
    assert all(p.grad is None for p in adapters.parameters(0))
    assert all(p.grad is not None for p in adapters.parameters(1))


def test_the_mean_of_two_adapters_is_loaded_as_a_third():
    backbone, adapters = with_adapters()
    adapters.load("mean", mean_state([adapters.state(0), adapters.state(1)]))
    for block in backbone.model.blocks:
        expected = (block.adapters["0"].up.weight + block.adapters["1"].up.weight) / 2
        torch.testing.assert_close(block.adapters["mean"].up.weight, expected)
    adapters.remove("mean")
    assert adapters.names == ["0", "1"]


def test_a_state_brings_its_adapters_along():
    saved, adapters = with_adapters(["0", "1", "universal"])
    stream = io.BytesIO()
    torch.save(saved.state_dict(), stream)
    loaded = micro_backbone().eval()
    put_adapters(loaded.model, 5)
    loaded.load_state_dict(torch.load(io.BytesIO(stream.getvalue()), weights_only=True))
    for name in adapters.names:
        with adapters.using(name), Adapters(loaded.model).using(name):
            assert torch.equal(loaded(IMAGES), saved(IMAGES))


def test_a_program_with_a_pass_per_adapter_can_be_exported():
    class Passes(torch.nn.Module):
        def __init__(self, backbone):
            super().__init__()
            self.backbone = backbone

        def forward(self, images):
            adapters = Adapters(self.backbone.model)
            return features_of_passes(self.backbone, images, (adapters.using(name) for name in (0, 1)))

    backbone, _ = with_adapters(depth=1)
    passes = Passes(backbone)
    with torch.no_grad():
        program = torch.export.export(passes, (IMAGES,), dynamic_shapes=({0: torch.export.Dim("images", min=1)},)).module()
        torch.testing.assert_close(program(IMAGES[:2]), passes(IMAGES[:2]), atol=1e-5, rtol=1e-5)


def test_a_pass_under_another_adapter_inside_a_recomputed_step_is_a_clear_error():
    backbone, adapters = with_adapters()
    backbone.model.set_grad_checkpointing()
    with pytest.raises(UserError, match="grad_checkpointing"), adapters.using(0):
        pass
