"""Learning rates against what the releases compute step by step."""

import math

import pytest
import torch

from utils.formulas.schedules import cosine, cosine_99, multistep


def test_multistep_and_cosine_are_torchs():
    for schedule, ours in ((lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 5], 0.1), lambda k: multistep(0.3, k, [2, 5], 0.1)),
                           (lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 8), lambda k: cosine(0.3, k, 8))):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
        scheduler = schedule(optimizer)
        for epoch in range(8):
            assert ours(epoch) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
            optimizer.step()
            scheduler.step()


def test_coda_prompts_rate_turns_by_equal_angles_from_0_to_89_degrees_and_6_minutes():
    x, y = 1.0, 0.0  # a point that turns: its abscissa is the cosine
    step = math.radians(89.1) / 19
    for epoch in range(20):
        assert cosine_99(0.001, epoch, 20) == pytest.approx(0.001 * x, rel=1e-9)
        x, y = x * math.cos(step) - y * math.sin(step), x * math.sin(step) + y * math.cos(step)


def test_half_a_cosine_sums_to_a_sixth_less_than_coda_prompts_in_twenty_epochs():
    half, own = (sum(schedule(1.0, k, 20) for k in range(20)) for schedule in (cosine, cosine_99))
    assert 0.16 < 1 - half / own < 0.19


@pytest.mark.parametrize("epochs", [0, 1])
def test_one_epoch_has_the_full_rate(epochs):
    assert cosine_99(0.02, 0, epochs) == 0.02
