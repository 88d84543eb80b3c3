"""InfLoRA's subspaces, on a trained micro ViT."""

import math

import pytest
import torch

from models.lora.inflora import InfLoRA
from tests.support import learn, synthetic_learner
from utils.formulas.subspaces import GradientSpace
from utils.run.monitor import Monitor


def inputs_of_qkv(learner, task):
    """What enters each block's qkv, (tokens, D) float64, by the layer's path: a second way to it."""
    seen = {}
    handles = [layer.register_forward_hook(lambda _, args, __, path=path: seen.setdefault(path, []).append(args[0].flatten(0, 1)))
               for path, layer in learner.pairs.layers.items()]
    learner.net.eval()
    with torch.no_grad():
        for images, _ in learner.data.batches("train", task, batch_size=50, augment=False):
            learner.net.features(images)
    for handle in handles:
        handle.remove()
    return {path: torch.cat(rows).double() for path, rows in seen.items()}


def test_the_moments_are_those_of_all_tokens_of_the_task():
    learner = synthetic_learner("inflora")
    moments = learner.task_moments(0)
    for path, rows in inputs_of_qkv(learner, 0).items():
        torch.testing.assert_close(moments[path].second_moment(), rows.T @ rows / len(rows), rtol=1e-5, atol=1e-7)


def test_a_new_pair_works_in_the_leading_directions_that_no_old_task_uses():
    learner = synthetic_learner("inflora", inflora_energy=0.6)
    learn(learner, [0])
    learner.begin_task(1)
    for path, rows in inputs_of_qkv(learner, 1).items():
        space = learner.spaces[path]
        M = space.basis.double()
        projector = M @ M.T if space.free else torch.eye(len(M)) - M @ M.T
        u = torch.linalg.svd(projector @ rows.T @ rows / len(rows)).U[:, :2]
        A = learner.pairs.layers[path].pairs["k"]["1"].lora_A.detach().double()
        torch.testing.assert_close(A @ (torch.eye(len(M)) - projector) @ A.T, torch.zeros(2, 2, dtype=torch.float64), atol=1e-9, rtol=0)
        torch.testing.assert_close(A.T @ A, u @ u.T / 3, atol=1e-4, rtol=0)
        assert torch.equal(learner.pairs.layers[path].pairs["v"]["1"].lora_A, learner.pairs.layers[path].pairs["k"]["1"].lora_A)


def test_what_is_used_holds_the_threshold_s_share_of_the_tokens_energy():
    learner = synthetic_learner("inflora", inflora_energy=0.7)
    learn(learner, [0, 1])
    threshold = 0.7 + 0.3 / 3  # after the second of three tasks
    for path, rows in inputs_of_qkv(learner, 1).items():
        space = learner.spaces[path]
        inside = (rows @ space.basis.double()).square().sum() / rows.square().sum()
        held = 1 - inside if space.free else inside
        assert held >= threshold - 1e-5


def test_the_authors_way_to_measure_energy_keeps_fewer_directions():
    used = {}
    for squared in (False, True):
        learner = synthetic_learner("inflora", inflora_squared=squared, inflora_energy=0.9)
        learn(learner, [0])
        used[squared] = sum(len(s.basis) - s.basis.shape[1] if s.free else s.basis.shape[1] for s in learner.spaces.values())
    assert used[True] < used[False]


def test_only_the_newest_b_and_the_new_head_train():
    learner = synthetic_learner("inflora")
    learn(learner, [0])
    learner.begin_task(1)
    trained = {name for name, p in learner.net.named_parameters() if p.requires_grad}
    assert all(name.endswith(".1.lora_B") or name.startswith("heads.1.") for name in trained) and len(trained) == 2 * 2 + 2
    before = {name: p.detach().clone() for name, p in learner.net.named_parameters()}
    learner.train(1, Monitor())
    moved = {name for name, p in learner.net.named_parameters() if not torch.equal(p, before[name])}
    assert moved == trained


def test_without_its_subspace_the_pairs_are_others(monkeypatch):
    """The wrong way: directions chosen as if nothing were used."""
    right = synthetic_learner("inflora")
    learn(right, [0, 1])
    with monkeypatch.context() as patch:
        patch.setattr(InfLoRA, "space", lambda self, path, like: GradientSpace.empty(like))
        wrong = synthetic_learner("inflora")
        learn(wrong, [0, 1])
    a, b = (learner.pairs.layers["blocks.0.attn.qkv"].pairs["k"]["1"].lora_A for learner in (right, wrong))
    assert not torch.allclose(a, b, atol=1e-2)


def test_the_rate_falls_as_in_the_release_and_memory_is_counted():
    learner = synthetic_learner("inflora", epochs=20)
    assert learner.learning_rate(1.0, 0) == 1 and learner.learning_rate(1.0, 19) == pytest.approx(math.cos(0.495 * math.pi))
    learn(learner, [0])
    assert 0 < learner.memory_bytes()["statistics"] == sum(4 * s.basis.numel() for s in learner.spaces.values())
    assert learner.memory_bytes()["statistics"] <= learner.planned_statistics(2, 12) == 2 * 4 * 16 * 8
