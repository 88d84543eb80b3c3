"""Several LoRA pairs per layer, against weights formed by hand."""

import copy
import io

import pytest
import torch

from convs.lora import merge_lora
from convs.lora_pairs import Pairs, put_pairs
from tests.support import micro_backbone
from utils.errors import UserError

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(3))
TARGETS = ("k", "v", "fc1")


def with_pairs(ranks=(2, 3), magnitude=None, seed=0, targets=TARGETS):
    """A micro ViT with one pair per rank, of random numbers, called 0, 1, ..."""
    backbone = micro_backbone().eval()
    backbone.requires_grad_(False)
    pairs = put_pairs(backbone.model, targets, scale=0.7)
    generator = torch.Generator().manual_seed(seed)
    for name, rank in enumerate(ranks):
        pairs.add(name, rank, magnitude=magnitude, generator=generator)
        for _, pair in pairs.of(name):
            pair.lora_B.data.normal_(std=0.3, generator=generator)
    return backbone, pairs


def formed(backbone, names, coefficient=lambda pair: 1.0):
    """A plain ViT whose weights are W + 0.7 sum of c B A, row by row of q, k and v."""
    plain = micro_backbone().eval()
    for block, twin in zip(backbone.model.blocks, plain.model.blocks, strict=True):
        for name in names:
            for third, target in enumerate(("q", "k", "v")):
                if target in block.attn.qkv.pairs:
                    pair = block.attn.qkv.pairs[target][name]
                    twin.attn.qkv.weight.data[16 * third : 16 * third + 16] += 0.7 * coefficient(pair) * pair.lora_B.data @ pair.lora_A.data
            if hasattr(block.mlp.fc1, "pairs"):
                pair = block.mlp.fc1.pairs["fc1"][name]
                twin.mlp.fc1.weight.data += 0.7 * coefficient(pair) * pair.lora_B.data @ pair.lora_A.data
    return plain


def test_the_pairs_of_all_tasks_are_summed_on_the_rows_they_are_for():
    backbone, pairs = with_pairs()
    torch.testing.assert_close(backbone(IMAGES), formed(backbone, "01")(IMAGES), atol=1e-5, rtol=1e-5)
    for names in (["0"], ["1"], []):
        with pairs.using(names):
            torch.testing.assert_close(backbone(IMAGES), formed(backbone, names)(IMAGES), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(merge_lora(backbone)(IMAGES), backbone(IMAGES), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(backbone(IMAGES), micro_backbone().eval()(IMAGES), atol=1e-3)


def test_a_new_pair_changes_nothing_and_old_frozen_ones_get_no_gradient():
    backbone, pairs = with_pairs()
    pairs.freeze(0)
    pairs.freeze(1)
    before = backbone(IMAGES)
    pairs.add(2, 4, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(backbone(IMAGES), before)
    backbone(IMAGES).square().sum().backward()
    assert all(p.grad is None for name in (0, 1) for p in pairs.parameters(name))
    assert all(pair.lora_B.grad.abs().sum() > 0 for _, pair in pairs.of(2))


def test_a_frozen_direction_keeps_the_output_and_its_magnitude_trains_on():
    backbone, pairs = with_pairs(magnitude=1.5)
    before = backbone(IMAGES)
    torch.testing.assert_close(before, formed(backbone, "01", lambda pair: 1.5)(IMAGES), atol=1e-5, rtol=1e-5)
    pairs.freeze(0)
    torch.testing.assert_close(backbone(IMAGES), before, atol=1e-5, rtol=1e-5)
    old = [(pair.lora_A.clone(), pair.lora_B.clone()) for _, pair in pairs.of(0)]
    trained = [p for p in backbone.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        backbone(IMAGES).square().sum().backward()
        optimizer.step()
    for (_, pair), (A, B) in zip(pairs.of(0), old, strict=True):
        assert torch.equal(pair.lora_A, A) and torch.equal(pair.lora_B, B)  # old directions never move
        assert pair.norm.item() == pytest.approx((B @ A).norm().item(), rel=1e-5)
        assert pair.magnitude.item() != pytest.approx(1.5 * pair.norm.item(), rel=1e-6)
    found = backbone(IMAGES)
    expected = formed(backbone, "01", lambda pair: pair.magnitude.item() / pair.norm.item())
    torch.testing.assert_close(found, expected(IMAGES), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(merge_lora(backbone)(IMAGES), found, atol=1e-5, rtol=1e-5)


def test_a_pair_that_learned_nothing_can_be_frozen():
    backbone, pairs = with_pairs(ranks=())
    pairs.add(0, 2, magnitude=1.0)
    pairs.freeze(0)
    assert backbone(IMAGES).isfinite().all() and all(pair.magnitude.item() == 1 for _, pair in pairs.of(0))


def test_full_rank_pairs_can_be_set_to_another_basis_without_changing_the_output():
    backbone, pairs = with_pairs(ranks=(), targets=("qkv", "fc1"))
    pairs.add(0, 48, start="kaiming", generator=torch.Generator().manual_seed(0))
    for _, pair in pairs.of(0):
        pair.lora_B.data.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    before = backbone(IMAGES)
    for _, pair in pairs.of(0):
        product = pair.lora_B.data @ pair.lora_A.data
        U = torch.linalg.qr(torch.randn(len(product), len(product), generator=torch.Generator().manual_seed(2)))[0]
        pair.set(U.T @ product, U)
    torch.testing.assert_close(backbone(IMAGES), before, atol=1e-4, rtol=1e-4)


def test_a_state_brings_its_pairs_along_whatever_their_rank():
    saved, _ = with_pairs(ranks=(2, 3), magnitude=0.8)
    loaded, pairs = with_pairs(ranks=(4,), magnitude=0.1, seed=9)
    stream = io.BytesIO()
    torch.save(saved.state_dict(), stream)
    loaded.load_state_dict(torch.load(io.BytesIO(stream.getvalue()), weights_only=True))
    assert pairs.names == ["0", "1"] and torch.equal(loaded(IMAGES), saved(IMAGES))


def test_copies_export_meta_bfloat16_and_recomputation():
    backbone, pairs = with_pairs(magnitude=0.5)
    expected = backbone(IMAGES).detach()
    twin = copy.deepcopy(backbone)
    Pairs(twin.model).select([])
    assert torch.equal(backbone(IMAGES), expected) and not torch.allclose(twin(IMAGES), expected)
    program = torch.export.export(backbone, (IMAGES,), dynamic_shapes=({0: torch.export.Dim("images", min=1)},)).module()
    torch.testing.assert_close(program(IMAGES[:1]), expected[:1], atol=1e-5, rtol=1e-5)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(backbone(IMAGES).float(), expected, atol=0.1, rtol=0.05)
    backbone(IMAGES).sum().backward()
    gradients = [p.grad.clone() for p in pairs.parameters(1)]
    backbone.zero_grad()
    backbone.model.set_grad_checkpointing()
    backbone(IMAGES).sum().backward()
    for parameter, gradient in zip(pairs.parameters(1), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    with pytest.raises(UserError, match="grad_checkpointing"), pairs.using([0]):
        pass
    assert backbone.to("meta")(IMAGES.to("meta")).shape == expected.shape


def test_a_rank_that_no_layer_takes_is_a_clear_error():
    pairs = put_pairs(micro_backbone().model, ["qkv"])
    with pytest.raises(UserError, match="lora_rank: got 49, allowed: 1 to 48 for qkv"):
        pairs.add(0, 49)
