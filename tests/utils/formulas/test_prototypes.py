"""Prototypes against the papers' formulas written with loops."""

import math

import pytest
import torch

from utils.formulas.prototypes import prototype_scores, shift_means, synthesise_prototypes

GENERATOR = torch.Generator().manual_seed(0)
TASKS = torch.tensor([0, 0, 1, 2, 2, 2])
PROTOTYPES = torch.randn(6, 3, 5, generator=GENERATOR)


def cosine(a, b):
    return (a @ b / (a.norm() * b.norm())).item()


def test_synthesised_prototypes_equal_the_formula_written_with_loops():
    found = synthesise_prototypes(PROTOTYPES, TASKS)
    for c in range(6):
        i = int(TASKS[c])
        for j in range(3):
            expected = PROTOTYPES[c, j]
            if j > i:
                newer = [k for k in range(6) if TASKS[k] >= j]
                weights = [math.exp(cosine(PROTOTYPES[c, i], PROTOTYPES[k, i])) for k in newer]
                expected = sum(w * PROTOTYPES[k, j] for w, k in zip(weights, newer, strict=True)) / sum(weights)
            torch.testing.assert_close(found[c, j], expected)


def test_what_was_not_measured_plays_no_part():
    spoiled = PROTOTYPES.clone()
    spoiled[0, 1] = spoiled[2, 2] = torch.nan
    torch.testing.assert_close(synthesise_prototypes(spoiled, TASKS), synthesise_prototypes(PROTOTYPES, TASKS))


def test_scores_weigh_the_own_adapter_and_the_others():
    features = torch.randn(4, 3, 5, generator=GENERATOR)
    found = prototype_scores(features, PROTOTYPES, TASKS, 0.1)
    for n in range(4):
        for c in range(6):
            cosines = [cosine(features[n, j], PROTOTYPES[c, j]) for j in range(3)]
            own = cosines.pop(int(TASKS[c]))
            assert found[n, c].item() == pytest.approx(own + 0.1 / 2 * sum(cosines), rel=1e-4, abs=1e-6)


def test_one_task_is_the_plain_cosine():
    features, tasks = torch.randn(4, 1, 5, generator=GENERATOR), torch.zeros(6, dtype=torch.long)
    found = prototype_scores(features, PROTOTYPES[:, :1], tasks, 0.1)
    torch.testing.assert_close(found, torch.nn.functional.cosine_similarity(features, PROTOTYPES[:, 0][None], dim=2))


def test_the_shift_is_exact_for_a_translation():
    means, before = torch.randn(7, 5, generator=GENERATOR), torch.randn(20, 5, generator=GENERATOR)
    move = torch.randn(5, generator=GENERATOR)
    torch.testing.assert_close(shift_means(means, before, before + move), means + move)
    torch.testing.assert_close(shift_means(1000 + means, before, before + move), 1000 + means + move)  # under the floor alone
    assert torch.equal(shift_means(means, before[:0], before[:0]), means)


def test_the_shift_equals_the_formula_written_with_loops(monkeypatch):
    means, before, after = (torch.randn(n, 5, generator=GENERATOR) for n in (3, 8, 8))
    monkeypatch.setattr("utils.formulas.prototypes.SHIFT_PAIRS_AT_ONCE", 16)  # two classes, then one
    found = shift_means(means, before, after, width=1.5)
    for c in range(3):
        weights = [math.exp(-(before[i] - means[c]).square().sum().item() / (2 * 1.5**2)) + 1e-5 for i in range(8)]
        moved = sum(w * (after[i] - before[i]) for i, w in enumerate(weights)) / sum(weights)
        torch.testing.assert_close(found[c], means[c] + moved)
