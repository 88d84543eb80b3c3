"""Subspaces against projections of the inputs themselves."""

import itertools
import math

import pytest
import torch

from utils.formulas.subspaces import (
    GradientSpace,
    dual_gpm,
    energy_threshold,
    kept_rank,
    new_directions,
    ranks_to_keep,
    root_of,
    rotate_pair,
    truncate,
)

DIM = 12


def tokens(seed, directions=4, count=200):
    """Inputs (n, D) that lie mostly in a few directions of their own."""
    generator = torch.Generator().manual_seed(seed)
    main = torch.randn(count, directions, generator=generator) @ torch.randn(directions, DIM, generator=generator)
    return (main + 0.1 * torch.randn(count, DIM, generator=generator)).double()


def moment(x):
    return x.T @ x / len(x)


def used_energy(space, x):
    """The share of |x|^2 in what the space calls used."""
    inside = ((x @ space.basis).square().sum() / x.square().sum()).item()
    return 1 - inside if space.free else inside


def learn(count, threshold=0.95):
    space, spaces = GradientSpace.empty(torch.zeros(DIM, DIM, dtype=torch.float64)), []
    for task in range(count):
        space = dual_gpm(space, root_of(moment(tokens(task))), threshold)
        spaces.append(space)
    return spaces


def test_truncation_keeps_the_fewest_directions_that_hold_the_energy():
    assert kept_rank(torch.tensor([3.0, 2.0, 1.0]), 9 / 14 - 1e-6) == 1
    assert kept_rank(torch.tensor([3.0, 2.0, 1.0]), 9 / 14 + 1e-6) == 2
    assert kept_rank(torch.tensor([3.0, 2.0, 1.0]), 1.0) == 3
    assert kept_rank(torch.zeros(3), 0.9) == 0
    u, v = (torch.linalg.qr(torch.randn(5, 3, generator=torch.Generator().manual_seed(i)))[0] for i in range(2))
    matrix = u @ torch.diag(torch.tensor([3.0, 2.0, 1.0])) @ v.T
    torch.testing.assert_close(truncate(matrix, 0.9), 3 * torch.outer(u[:, 0], v[:, 0]) + 2 * torch.outer(u[:, 1], v[:, 1]))
    torch.testing.assert_close(truncate(matrix, 1.0), matrix)


def test_the_threshold_rises_from_the_first_towards_one():
    assert [energy_threshold(0.95, t, 10) for t in (0, 5)] == pytest.approx([0.95, 0.975])


@pytest.mark.parametrize("threshold", [0.5, 0.95, 1.0])
def test_the_energy_of_the_tokens_is_reached_by_no_more_directions_than_needed(threshold):
    space = GradientSpace.empty(torch.zeros(DIM, DIM, dtype=torch.float64))
    for task in range(4):
        x = tokens(task)
        found = dual_gpm(space, root_of(moment(x)), threshold)
        assert used_energy(found, x) >= threshold - 1e-9
        torch.testing.assert_close(found.basis.T @ found.basis, torch.eye(found.basis.shape[1], dtype=torch.float64))
        used = DIM - found.basis.shape[1] if found.free else found.basis.shape[1]
        before = DIM - space.basis.shape[1] if space.free else space.basis.shape[1]
        if used > before:  # with one direction less the energy is missed
            residual = x - x @ space.basis @ space.basis.T if not space.free else x @ space.basis @ space.basis.T
            values = torch.linalg.svdvals(residual).square()
            assert (x.square().sum() - values.sum() + values[: used - before - 1].sum()) / x.square().sum() < threshold
        assert found.free is (used > DIM / 2)
        space = found


def test_what_was_used_stays_used():
    spaces = learn(5)
    assert [space.free for space in spaces] == sorted(space.free for space in spaces) and spaces[-1].free and not spaces[0].free
    for earlier, later in itertools.pairwise(spaces):
        used = torch.eye(DIM, dtype=torch.float64) - earlier.unused(torch.eye(DIM, dtype=torch.float64))
        torch.testing.assert_close(later.unused(used), torch.zeros_like(used), atol=1e-9, rtol=0)


def test_new_directions_are_orthogonal_to_what_is_used_and_hold_most_of_the_rest():
    for space in learn(4, threshold=0.8):
        x = tokens(9)
        A = new_directions(space, moment(x), 2)
        assert A.shape == (2, DIM)
        torch.testing.assert_close(space.unused(A.T), A.T)
        torch.testing.assert_close(A @ A.T, torch.eye(2, dtype=torch.float64) / 3)
        captured = (space.unused(moment(x)).T @ A.T * math.sqrt(3)).square().sum()
        best = torch.linalg.svdvals(space.unused(moment(x)))[:2].square().sum()
        torch.testing.assert_close(captured, best)


def test_the_authors_energy_counts_fourth_powers():
    x = tokens(0, directions=2)
    plain, squared = (dual_gpm(GradientSpace.empty(inputs), inputs, 0.9) for inputs in (root_of(moment(x)), moment(x)))
    assert squared.basis.shape[1] <= plain.basis.shape[1]
    values = torch.linalg.eigvalsh(moment(x)).flip(0)
    assert squared.basis.shape[1] == kept_rank(values, 0.9) and plain.basis.shape[1] == kept_rank(values.sqrt(), 0.9)


@pytest.mark.parametrize("rank", [10, 4])
def test_the_rotation_changes_no_output_and_orders_what_the_outputs_carry(rank):
    generator = torch.Generator().manual_seed(0)
    B, A = torch.randn(10, rank, generator=generator).double(), torch.randn(rank, DIM, generator=generator).double()
    x = tokens(0) + 3
    turned_B, turned_A, values = rotate_pair(B, A, torch.cov(x.T, correction=0))
    torch.testing.assert_close(turned_B @ turned_A, B @ A)
    torch.testing.assert_close(turned_B.T @ turned_B, torch.eye(rank, dtype=torch.float64), atol=1e-9, rtol=0)
    outputs = (x - x.mean(dim=0)) @ (B @ A).T  # centred B A x of every token
    torch.testing.assert_close(values[: min(rank, 10)], torch.linalg.svdvals(outputs)[:rank] / math.sqrt(len(x)), atol=1e-6, rtol=1e-6)
    kept, released = turned_B[:, :2], turned_B[:, 2:]
    torch.testing.assert_close(kept.T @ released, torch.zeros(2, rank - 2, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close((outputs @ kept).square().sum(), torch.linalg.svdvals(outputs)[:2].square().sum())


def test_a_full_pair_wider_than_the_input_keeps_all_its_columns():
    generator = torch.Generator().manual_seed(0)
    B, A = torch.randn(20, 20, generator=generator).double(), torch.randn(20, 6, generator=generator).double()
    turned_B, turned_A, values = rotate_pair(B, A, torch.eye(6, dtype=torch.float64))
    assert turned_B.shape == (20, 20) and turned_A.shape == (20, 6) and values.shape == (20,) and not values[6:].any()
    torch.testing.assert_close(turned_B @ turned_A, B @ A)


def test_ranks_sum_to_at_most_their_share_and_equal_the_search_step_by_step():
    generator = torch.Generator().manual_seed(0)
    for tasks in (1, 2, 3):
        values = [torch.rand(30, generator=generator).exp().pow(6).sort(descending=True).values for _ in range(tasks)]
        found = ranks_to_keep(values, 30, tasks)
        tau = 1.0
        while True:
            tau -= 1e-5
            expected = [kept_rank(v, tau) for v in values]
            if sum(expected) <= 30 * tasks // (tasks + 1):
                break
        assert found == expected and sum(found) <= 30 * tasks / (tasks + 1)
