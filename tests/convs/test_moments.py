"""Moments of what enters a layer, against all inputs kept at once."""

import torch
from torch import nn

from convs.moments import input_moments


def test_moments_equal_those_of_all_rows_together():
    layers = {"a": nn.Linear(6, 4), "b": nn.Linear(4, 2)}
    batches = [torch.randn(n, 5, 6) + 3 for n in (2, 3, 1)]
    with input_moments(layers) as moments:
        for batch in batches:
            layers["b"](layers["a"](batch))
    layers["a"](batches[0])  # outside: not counted
    rows = torch.cat([batch.reshape(-1, 6) for batch in batches]).double()
    assert moments["a"].count == 30 and moments["b"].count == 30
    torch.testing.assert_close(moments["a"].second_moment(), rows.T @ rows / 30, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(moments["a"].covariance(), torch.cov(rows.T, correction=0), rtol=1e-4, atol=1e-4)
