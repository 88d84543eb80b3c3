import math

import pytest
import torch
from torch.nn import functional as F

from utils.formulas.losses import cosface, symmetric_cross_entropy


def test_with_b_zero_it_is_cross_entropy():
    logits, targets = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    torch.testing.assert_close(symmetric_cross_entropy(logits, targets, 1.0, 0.0), F.cross_entropy(logits, targets))


def test_reverse_term_equals_the_formula_written_out():
    logits, targets = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0])
    p = logits.softmax(dim=1)[0]
    expected = -(p[1] + p[2]) * torch.log(torch.tensor(1e-4))
    torch.testing.assert_close(symmetric_cross_entropy(logits, targets, 0.0, 1.0), expected)


def test_cosface_equals_the_formula_written_with_loops():
    cosines, targets, s, m = torch.tensor([[0.9, 0.2, -0.4], [0.1, 0.3, 0.8]]), torch.tensor([0, 1]), 20.0, 0.3
    losses = []
    for row, y in zip(cosines.tolist(), targets.tolist(), strict=True):
        own = math.exp(s * (row[y] - m))
        losses.append(-math.log(own / (own + sum(math.exp(s * c) for j, c in enumerate(row) if j != y))))
    assert cosface(cosines, targets, s, m).item() == pytest.approx(sum(losses) / 2, rel=1e-5)
    torch.testing.assert_close(cosface(cosines, targets, s, 0.0), F.cross_entropy(s * cosines, targets))
