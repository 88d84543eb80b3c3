import torch
from torch.nn import functional as F

from utils.formulas.losses import symmetric_cross_entropy


def test_with_b_zero_it_is_cross_entropy():
    logits, targets = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    torch.testing.assert_close(symmetric_cross_entropy(logits, targets, 1.0, 0.0), F.cross_entropy(logits, targets))


def test_reverse_term_equals_the_formula_written_out():
    logits, targets = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0])
    p = logits.softmax(dim=1)[0]
    expected = -(p[1] + p[2]) * torch.log(torch.tensor(1e-4))
    torch.testing.assert_close(symmetric_cross_entropy(logits, targets, 0.0, 1.0), expected)
