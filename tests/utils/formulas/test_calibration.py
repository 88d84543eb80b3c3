"""The temperature of probabilities."""

import pytest
import torch

from tests.waits import Waits
from utils.formulas.calibration import fit_temperature


def test_temperature_is_recovered_from_draws():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40_000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    assert fit_temperature(logits * 37, labels) == pytest.approx(37, rel=0.03)


def test_temperature_waits_for_the_device_once():
    scores, labels = torch.randn(50, 4), torch.arange(50) % 4
    with Waits() as waits:
        fit_temperature(scores, labels)
    assert waits.count == 1
