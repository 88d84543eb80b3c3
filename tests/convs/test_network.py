"""The incremental network against the release's forward pass."""

import numpy as np
import pytest
import torch

from convs.lora import add_lora
from convs.network import IncrementalNet, OwnTask
from tests.support import load_parity, micro_backbone, parity_state


@pytest.mark.parametrize("kind", ["vit", "lora"])
def test_features_and_logits_follow_the_release(kind):
    arrays, _ = load_parity("8_vit_forward")
    backbone = micro_backbone()
    if kind == "lora":
        add_lora(backbone.model, rank=4, scale=0.8, targets=["qkv", "fc1", "fc2"])
    net = IncrementalNet(backbone)
    net.add_head(3)
    net.add_head(2)
    missing, unexpected = net.load_state_dict(parity_state(arrays, f"{kind}/param/"), strict=False)
    assert not unexpected and missing == ["_extra_state"]
    if kind == "lora":
        net.head_scales = [1.02, 1.0]
    images = torch.from_numpy(arrays["x"])
    np.testing.assert_allclose(net.features(images).detach(), arrays[f"{kind}/features"], atol=1e-5)
    np.testing.assert_allclose(net(images).detach(), arrays[f"{kind}/logits"], atol=1e-5)


def test_heads_begin_as_in_the_release():
    net = IncrementalNet(micro_backbone())
    head = net.add_head(5000, torch.Generator().manual_seed(0))
    assert head.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert head.weight.abs().max() <= 2  # truncated at two units, as timm does it
    assert torch.equal(head.bias, torch.zeros(5000))


def test_own_task_gives_the_logits_of_that_task():
    net = IncrementalNet(micro_backbone())
    net.add_head(3)
    net.add_head(2)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(OwnTask(net, 1)(images), net(images)[:, 3:])


def test_scales_survive_save_and_load():
    nets = [IncrementalNet(micro_backbone()) for _ in range(2)]
    for net in nets:
        net.add_head(3)
        net.add_head(2)
    nets[0].head_scales = [1.02, 1.0]
    nets[1].load_state_dict(nets[0].state_dict())
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(nets[0](images), nets[1](images))


def test_a_compiled_channels_last_backbone_gives_the_same_and_keeps_its_names():
    plain, fast = micro_backbone(), micro_backbone()
    fast.load_state_dict(plain.state_dict())
    fast.speed_up(compile=True, channels_last=True, backend="aot_eager")
    assert list(fast.state_dict()) == list(plain.state_dict())
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    net = IncrementalNet(fast)
    for classes in (2, 3):  # heads grow after compiling
        net.add_head(classes)
        torch.testing.assert_close(net.features(images), plain(images), atol=1e-5, rtol=1e-5)
        assert net(images).shape == (3, sum(net.head_sizes))
