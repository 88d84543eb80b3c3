"""Heads against cosines written out, and as heads of the incremental network."""

import math
from functools import partial

import pytest
import torch

from convs.heads import cosine_head, linear_head
from convs.network import IncrementalNet, OwnTask
from tests.support import micro_backbone

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def test_logits_are_scaled_cosines_of_feature_and_weight():
    head = cosine_head(4, 3, torch.Generator().manual_seed(0), scale=7.0)
    x = torch.randn(2, 4)
    for n in range(2):
        for c in range(3):
            w = head.weight[c].detach()
            cosine = sum((a * b).item() for a, b in zip(x[n], w, strict=True)) / math.sqrt((x[n] ** 2).sum() * (w**2).sum())
            assert head(x)[n, c].item() == pytest.approx(7 * cosine, rel=1e-4, abs=1e-5)
    torch.testing.assert_close(head(100 * x), head(x))


def test_a_learned_scale_trains_and_a_fixed_one_does_not():
    learned, fixed = (cosine_head(4, 3, scale=2.0, learned=learned) for learned in (True, False))
    assert dict(learned.named_parameters()).keys() == {"weight", "scale"}
    assert dict(fixed.named_parameters()).keys() == {"weight"}
    assert "scale" in fixed.state_dict()  # a loaded head gives the saved one's logits
    learned(torch.randn(2, 4)).sum().backward()
    assert learned.scale.grad is not None


@pytest.mark.parametrize("factory", [linear_head, partial(linear_head, bias=False), partial(cosine_head, scale=16.0),
                                     partial(cosine_head, learned=True)])
def test_the_network_grows_by_any_kind_of_head_and_loads_it_again(factory):
    nets = [IncrementalNet(micro_backbone(), factory).eval() for _ in range(2)]
    for number, net in enumerate(nets):
        for classes in (3, 2):
            net.add_head(classes, torch.Generator().manual_seed(number))
    assert nets[0].head_sizes == [3, 2] and nets[0](IMAGES).shape == (3, 5)
    torch.testing.assert_close(OwnTask(nets[0], 1)(IMAGES), nets[0](IMAGES)[:, 3:])
    nets[1].load_state_dict(nets[0].state_dict())
    assert torch.equal(nets[0](IMAGES), nets[1](IMAGES))


def test_a_head_is_drawn_from_its_generator_alone():
    for factory in (linear_head, cosine_head):
        first = factory(8, 3, torch.Generator().manual_seed(1)).weight
        torch.manual_seed(0)
        state = torch.get_rng_state()
        assert torch.equal(factory(8, 3, torch.Generator().manual_seed(1)).weight, first)
        assert torch.equal(torch.get_rng_state(), state)
