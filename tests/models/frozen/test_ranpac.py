"""RanPAC's ridge regression against the augmented least-squares problem, its lambda against one solve per value."""

import pytest
import torch

from models.frozen import ranpac
from models.frozen.ranpac import RIDGES, choose_ridge, ridge_solution, rounding
from tests.models.frozen.test_ncm import learned


def problem(count, width, classes=3):
    generator = torch.Generator().manual_seed(count)
    projected = torch.relu(torch.randn(count, width, generator=generator))
    noisy = projected[:, :classes] + 2.0 * torch.randn(count, classes, generator=generator)
    return projected, torch.nn.functional.one_hot(noisy.argmax(dim=1), classes).float()


def test_ridge_solution_solves_least_squares_with_lambda_appended_as_rows():
    h, y = problem(20, 6)
    ridge = 0.5
    rows = torch.cat([h, ridge**0.5 * torch.eye(6)]).double()
    wanted = torch.cat([y, torch.zeros(6, 3)]).double()
    torch.testing.assert_close(ridge_solution(h.T @ h, h.T @ y, ridge), torch.linalg.lstsq(rows, wanted).solution.float(),
                               rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("count", "width"), [(100, 12), (40, 60)])
def test_lambda_is_the_one_that_a_solve_per_value_would_choose(count, width):
    h, y = problem(count, width)
    fit, held_out = slice(0, int(0.8 * count)), slice(int(0.8 * count), count)
    gram, targets = (h[fit].T @ h[fit]).double(), (h[fit].T @ y[fit]).double()
    errors = {}
    for ridge in RIDGES:
        if ridge >= 1e-4:  # below that the reference itself is rounding
            weights = torch.linalg.solve(gram + ridge * torch.eye(width), targets)
            errors[ridge] = (h[held_out].double() @ weights - y[held_out]).square().mean().item()
    best = min(errors, key=errors.get)
    assert 1e-4 < best < 1e8  # a choice in the middle, not an end of the list
    assert choose_ridge(h, y, least=1e-4) == best


def test_lambda_is_never_below_the_rounding_of_the_gram_matrix():
    h, y = problem(40, 60)
    large = 1e4 * h
    assert choose_ridge(large, y, rounding(large.T @ large)) >= rounding(large.T @ large)


def test_two_tasks_give_the_regression_on_both_tasks_at_once():
    learner = learned("ranpac", ranpac_dim=24)
    batches = [learner.data.given[t][0] for t in range(2)]
    h = torch.cat([learner.project(learner.net.features(images).detach()) for images, _ in batches])
    labels = torch.cat([labels for _, labels in batches])
    targets = torch.nn.functional.one_hot(labels, 4).float()
    torch.testing.assert_close(learner.gram, h.T @ h, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(learner.targets, h.T @ targets, rtol=1e-4, atol=1e-3)
    assert learner.weights.shape == (24, 4)


def test_few_images_still_give_a_lambda():
    assert choose_ridge(torch.ones(1, 3), torch.ones(1, 2)) > 0


@pytest.mark.parametrize(("count", "width"), [(100, 12), (40, 60)])
def test_lambda_and_sums_are_the_same_in_parts(count, width, monkeypatch):
    h, y = problem(count, width)
    whole, seen = choose_ridge(h, y, 1e-4), []
    torch.manual_seed(0)
    at_once = learned("ranpac", ranpac_dim=24)
    monkeypatch.setattr(ranpac, "PROJECTED_AT_ONCE", 3)
    assert choose_ridge(h, y.bool(), 1e-4, lambda part: seen.append(len(part)) or part) == whole
    assert max(seen) <= 3
    torch.manual_seed(0)
    in_parts = learned("ranpac", ranpac_dim=24)
    for name in ("gram", "targets"):  # lambda is a close call of a few images here
        torch.testing.assert_close(getattr(in_parts, name), getattr(at_once, name), rtol=1e-4, atol=1e-4)
