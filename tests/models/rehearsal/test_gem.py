"""GEM's projection against a brute-force optimum, and what it does to a step."""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear

from models.rehearsal.gem import project, read_gradients, solve_dual
from tests.support import learn, synthetic_learner


def brute_force(g, memories):
    """The nearest point to g in {x: G x >= 0}: try every set of active constraints and keep the nearest feasible one."""
    candidates = [g]
    for size in range(1, len(memories) + 1):
        for active in combinations(range(len(memories)), size):
            rows = memories[list(active)]
            candidates.append(g - rows.T @ np.linalg.lstsq(rows @ rows.T, rows @ g, rcond=None)[0])
    feasible = [x for x in candidates if (memories @ x >= -1e-9).all()]
    return min(feasible, key=lambda x: np.linalg.norm(x - g))


@pytest.mark.parametrize("seed", range(8))
def test_projection_without_margin_is_the_nearest_allowed_gradient(seed):
    rng = np.random.default_rng(seed)
    g, memories = rng.normal(size=12), rng.normal(size=(4, 12))
    memories[0] -= 0.5 * g  # at least one old task objects
    found = project(torch.from_numpy(g), torch.from_numpy(memories), 0.0).numpy()
    np.testing.assert_allclose(found, brute_force(g, memories), atol=1e-6)
    assert (memories @ found >= -1e-6).all()


def test_projection_with_the_papers_margin_is_the_bounded_optimum_of_another_solver():
    rng = np.random.default_rng(1)
    g, memories = rng.normal(size=12), rng.normal(size=(4, 12))
    memories[0] -= 0.5 * g
    v = lsq_linear(memories.T, -g, bounds=(0.5, np.inf), tol=1e-14).x  # min || G^T v + g || over v >= gamma
    np.testing.assert_allclose(project(torch.from_numpy(g), torch.from_numpy(memories), 0.5).numpy(), g + v @ memories, atol=1e-5)


def test_a_gradient_that_no_old_task_minds_is_left_alone():
    g, memories = torch.tensor([1.0, 0.0]), torch.tensor([[1.0, 5.0], [0.0, 1.0]])
    assert torch.equal(project(g, memories, 0.5), g)


def test_parallel_old_tasks_and_empty_gradients_are_solved():
    g, memories = torch.tensor([-1.0, 1.0]), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(project(g, memories, 0.0), torch.tensor([0.0, 1.0]))


def test_a_gradient_that_overflowed_is_left_to_the_scaler():
    g = torch.tensor([float("inf"), 1.0])
    assert torch.equal(project(g, torch.tensor([[-1.0, 0.0]]), 0.5), g)


def test_a_step_of_training_never_goes_against_an_old_tasks_memory():
    learner = synthetic_learner("gem", gem_margin=0.0, weight_decay=0.0)
    learn(learner, [0])
    learner.begin_task(1)
    parameters = [p for p in learner.net.parameters() if p.requires_grad]
    objected = 0
    for step, (images, labels) in enumerate(learner.training_batches(1, 0)):
        learner.net.zero_grad()
        loss, _, _ = learner.training_loss(learner.net, images, labels)
        loss.backward()
        before = read_gradients(parameters)
        learner.after_backward(learner.net)
        after = read_gradients(parameters)
        old = learner.memory_gradient(learner.net, parameters, *learner.memory_batch(1, 0, step, 0), len(learner.stored(0)))
        objected += bool(before @ old < 0)
        assert after @ old > -1e-4 * after.norm() * old.norm()
    assert objected > 0  # else the test would show nothing


def test_a_negative_eigenvalue_from_rounding_is_solved_with_a_larger_ridge():
    nearly_parallel = np.array([[1.0, 1.0 + 1e-7], [1.0 + 1e-7, 1.0]])  # eigenvalues 2 and -1e-7
    v = solve_dual(nearly_parallel, np.array([-1.0, -1.0]), 0.0)
    assert (v >= -1e-9).all() and v.sum() == pytest.approx(1, abs=1e-3)  # the least of s^2 / 2 - s, s = v_1 + v_2
