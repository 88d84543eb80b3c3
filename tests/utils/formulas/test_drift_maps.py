"""SLDC's maps against the project's linear drift and least squares."""

import torch
from torch.nn import functional as F

from models.slca.drift import DriftSums
from utils.formulas.drift_maps import MixtureMap, fit_mixture, hold_features, linear_map

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(60, 8, generator=GENERATOR)
Y = X @ torch.linalg.qr(torch.randn(8, 8, generator=GENERATOR)).Q + 0.1 * torch.randn(60, 8, generator=GENERATOR)


def test_alpha_1_is_the_linear_drift_at_that_ridge():
    sums = DriftSums(8)
    sums.add(F.normalize(X, dim=1), F.normalize(Y, dim=1))
    torch.testing.assert_close(linear_map(X, Y, 1e-2), sums.operator(1e-2 * 8 / 60), atol=1e-6, rtol=1e-6)  # tr(X'X) = n = 60
    solution = torch.linalg.lstsq(F.normalize(X, dim=1), F.normalize(Y, dim=1)).solution
    torch.testing.assert_close(linear_map(X, Y, 1e-9).float(), solution, atol=1e-4, rtol=1e-4)


def test_what_the_images_say_nothing_about_stays():
    few = linear_map(X[:2], Y[:2])
    unseen = torch.linalg.svd(X[:2].double()).Vh[2:]
    torch.testing.assert_close(unseen @ few, unseen, atol=1e-9, rtol=0)
    torch.testing.assert_close(linear_map(X[:0], Y[:0]), torch.eye(8).double())


def test_alpha_2_begins_at_the_identity_and_restores_norms():
    torch.testing.assert_close(MixtureMap(8, torch.Generator().manual_seed(0)).move(5 * X), 5 * X)


def test_alpha_2_is_the_formula_written_out():
    mixture = MixtureMap(8, torch.Generator().manual_seed(0))
    for parameter in mixture.parameters():
        parameter.data.normal_(generator=GENERATOR)
    f = F.normalize(X[:1], dim=1)[0]
    c = mixture.mixing.exp() / mixture.mixing.exp().sum()
    mlp = mixture.output @ (mixture.hidden @ f + mixture.hidden_bias).clamp_min(0) + mixture.output_bias
    torch.testing.assert_close(mixture(f[None])[0], c[0] * f + c[1] * mixture.linear @ f + c[2] * (f + mlp))


def test_alpha_2_learns_what_no_linear_map_can():
    bent = F.normalize(F.normalize(X, dim=1) + 0.5 * F.normalize(X, dim=1).abs(), dim=1) * X.norm(dim=1, keepdim=True)
    mixture = fit_mixture(X, bent, torch.Generator().manual_seed(0), steps=600)
    linear = F.normalize(X, dim=1) @ linear_map(X, bent).float() * X.norm(dim=1, keepdim=True)
    assert F.mse_loss(mixture.move(X), bent) < 0.5 * F.mse_loss(linear, bent) < 0.5 * F.mse_loss(X, bent)
    again = fit_mixture(X, bent, torch.Generator().manual_seed(0), steps=600)
    assert torch.equal(mixture.move(X), again.move(X))


def test_holding_features_counts_differences_and_norms():
    f, old = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    norms = ((5 - 0) ** 2 + (1 - 5**0.5) ** 2) / 2
    torch.testing.assert_close(hold_features(f, old), torch.tensor((9 + 16 + 0 + 4) / 4 + 0.1 * norms))
