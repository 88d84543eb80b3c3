"""States: averages against loops and cases by hand, and passes under another state."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from convs.lora import add_lora
from convs.states import (
    changed,
    fisher_average,
    mean_state,
    move_towards,
    moving_lora,
    sign_agreement,
    under_state,
)
from tests.support import micro_backbone
from utils.errors import UserError
from utils.formulas.subspaces import truncate

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def states(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [{"a": torch.randn(4, 3, generator=generator), "b": torch.randn(5, generator=generator)} for _ in range(count)]


def test_plain_averages():
    old, new = states(2)
    torch.testing.assert_close(move_towards(old, new, 0.4)["a"], 0.6 * old["a"] + 0.4 * new["a"])
    torch.testing.assert_close(mean_state([old, new, new])["b"], (old["b"] + 2 * new["b"]) / 3)


def test_fisher_average_equals_the_formula_written_with_loops():
    (old, new), (f, g) = states(2), [{k: v.square() * 1e-3 for k, v in state.items()} for state in states(2, seed=1)]
    averaged = fisher_average(old, new, f, g, 0.4, floor=1e-4)
    for name in old:
        for i in np.ndindex(*old[name].shape):
            before, after = 0.6 * max(f[name][i].item(), 1e-4), 0.4 * max(g[name][i].item(), 1e-4)
            expected = (before * old[name][i].item() + after * new[name][i].item()) / (before + after)
            assert averaged[name][i].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_equal_fisher_is_coma_and_a_share_of_zero_the_old_state():
    old, new = states(2)
    fisher = states(1, seed=1)[0]
    fisher = {name: tensor.square() for name, tensor in fisher.items()}
    equal, none = fisher_average(old, new, fisher, fisher, 0.4), fisher_average(old, new, fisher, fisher, 0.0)
    for name in old:
        torch.testing.assert_close(equal[name], move_towards(old, new, 0.4)[name])
        torch.testing.assert_close(none[name], old[name])


def test_sign_agreement_on_a_case_by_hand():
    tasks = [{"w": torch.tensor([1.0, -3.0, 2.0, -1.0, 0.0, 2.0])}, {"w": torch.tensor([4.0, 1.0, -5.0, 1.0, 0.0, 3.0])},
             {"w": torch.tensor([-2.0, 1.0, 1.0, 0.0, 0.0, -0.5])}]
    # means: 1, -1/3, -2/3, 0, 0, 1.5
    torch.testing.assert_close(sign_agreement(tasks)["w"], torch.tensor([4.0, -3.0, -5.0, 0.0, 0.0, 3.0]))
    one = sign_agreement(tasks[:1])["w"]
    torch.testing.assert_close(one, tasks[0]["w"])


def test_only_lora_A_moves_by_its_leading_directions():
    generator = torch.Generator().manual_seed(0)
    merged, trained = ({"x.lora_A": torch.randn(4, 6, generator=generator), "x.lora_B": torch.randn(6, 4, generator=generator),
                        "norm.weight": torch.randn(6, generator=generator)} for _ in range(2))
    moved = moving_lora(merged, trained, 0.3, 0.9)
    step = trained["x.lora_A"] - merged["x.lora_A"]
    torch.testing.assert_close(moved["x.lora_A"], merged["x.lora_A"] + 0.3 * truncate(step, 0.9))
    assert not torch.allclose(moved["x.lora_A"], merged["x.lora_A"] + 0.3 * step, atol=1e-3)
    for name in ("x.lora_B", "norm.weight"):
        torch.testing.assert_close(moved[name], 0.7 * merged[name] + 0.3 * trained[name])
    everything = moving_lora(merged, trained, 1.0, 1.0)
    for name in merged:
        torch.testing.assert_close(everything[name], trained[name])


def test_averages_of_halves_are_rounded_once_and_nothing_given_is_changed():
    old, new = ({"w": torch.full((3,), value, dtype=torch.bfloat16)} for value in (1.0, 1.0078125))
    assert move_towards(old, new, 0.5)["w"].dtype == torch.bfloat16
    before = copy.deepcopy((old, new))
    fisher_average(old, new, old, new, 0.5)
    assert torch.equal(before[0]["w"], old["w"]) and torch.equal(before[1]["w"], new["w"])


def test_a_pass_under_a_state_equals_a_network_that_loaded_it_and_the_network_stays_its_own():
    net, other = micro_backbone().eval(), micro_backbone().eval()
    for backbone in (net, other):
        add_lora(backbone.model, 4, 0.8)
    for name, parameter in other.named_parameters():
        if "lora_B" in name or "norm" in name:
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    own, state = net(IMAGES), changed(other.state_dict(), net.state_dict())
    assert 0 < len(state) < len(net.state_dict()) and all("lora_B" in name or "norm" in name for name in state)
    parameters = dict(net.named_parameters())
    with torch.no_grad(), under_state(net, state):
        assert torch.equal(net(IMAGES), other(IMAGES))
        assert all(net.state_dict()[name].data_ptr() == tensor.data_ptr() for name, tensor in state.items())
    assert torch.equal(net(IMAGES), own) and all(p is parameters[name] for name, p in net.named_parameters())


def test_the_network_is_its_own_again_after_an_error_inside():
    net = micro_backbone()
    weight = net.model.norm.weight
    with pytest.raises(ZeroDivisionError), under_state(net, {"model.norm.weight": torch.zeros(16)}):
        _ = 1 / 0
    with pytest.raises(AssertionError, match="expected"), under_state(net, {"model.norm.weight": torch.zeros(7)}):
        pass
    assert net.model.norm.weight is weight


def test_a_program_with_a_pass_per_state_can_be_exported():
    class TwoStates(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = micro_backbone(depth=1).eval()
            self.register_buffer("other", torch.full((16,), 0.5))

        def forward(self, images):
            first = self.backbone(images)
            with under_state(self.backbone, {"model.norm.weight": self.other}):
                return torch.cat([first, self.backbone(images)], dim=1)

    module = TwoStates()
    with torch.no_grad():
        program = torch.export.export(module, (IMAGES,)).module()
        torch.testing.assert_close(program(IMAGES), module(IMAGES))
        assert not torch.allclose(module(IMAGES)[:, :16], module(IMAGES)[:, 16:])


def test_another_state_inside_a_recomputed_step_is_a_clear_error():
    net = micro_backbone()
    net.model.set_grad_checkpointing()
    with pytest.raises(UserError, match="grad_checkpointing"), under_state(net, {}):
        pass
