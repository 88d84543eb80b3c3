"""EWC's Fisher information and its penalty."""

import torch
from torch import nn
from torch.nn import functional as F

from models.finetuned.ewc import add_parabola, add_squared_gradient, label_at, quadratic_penalty
from tests.support import learn, synthetic_learner
from utils.rng import seed_of


def test_squared_gradients_of_a_linear_softmax_model_have_their_closed_form():
    torch.manual_seed(0)
    layer, x, y = nn.Linear(4, 3), torch.randn(5, 4), torch.tensor([0, 2, 1, 1, 0])
    total = {"weight": torch.zeros(3, 4), "bias": torch.zeros(3)}
    for i in range(5):
        add_squared_gradient(total, F.cross_entropy(layer(x[i:i + 1]), y[i:i + 1]), dict(layer.named_parameters()))
    error = layer(x).softmax(dim=1) - F.one_hot(y, 3)  # d loss / d logits
    torch.testing.assert_close(total["weight"], torch.einsum("nc,nd->cd", error**2, x**2).detach())
    torch.testing.assert_close(total["bias"], (error**2).sum(dim=0).detach())


def test_one_parabola_has_the_gradient_of_one_penalty_per_task():
    torch.manual_seed(0)
    fishers, weights = torch.rand(3, 6), torch.randn(3, 6)
    fishers[:, 0] = 0.0  # no task holds this one
    fisher, anchor = {}, {}
    for f, w in zip(fishers, weights, strict=True):
        fisher, anchor = add_parabola(fisher, anchor, {"w": f}, {"w": w})
    theta = torch.randn(6, requires_grad=True)
    apart = sum((f * (theta - w).square()).sum() for f, w in zip(fishers, weights, strict=True))
    together = quadratic_penalty({"w": theta}, fisher, anchor)
    torch.testing.assert_close(torch.autograd.grad(together, theta), torch.autograd.grad(apart, theta))


def test_fisher_of_a_task_is_not_zero_and_is_cut_at_its_limit():
    learner = synthetic_learner("ewc", ewc_fisher_max=1e-6, ewc_images=5)
    learn(learner, [0])
    largest = max(f.max().item() for f in learner.fisher.values())
    assert abs(largest - 1e-6) < 1e-12


def test_a_strong_penalty_keeps_the_backbone_closer_to_the_old_task():
    moved = []
    for strength in (0.0, 1e5):
        learner = synthetic_learner("ewc", ewc_lambda=strength, lr=0.01)
        learn(learner, [0])
        before = {k: v.clone() for k, v in learner.net.backbone.state_dict().items()}
        learn(learner, [1])
        moved.append(sum((v - before[k]).square().sum().item() for k, v in learner.net.backbone.state_dict().items()))
    assert moved[1] < moved[0]


def test_evenly_spread_levels_draw_each_label_as_often_as_its_probability():
    probabilities = torch.tensor([[0.2, 0.0, 0.5, 0.3]])
    drawn = torch.cat([label_at(probabilities, (i + 0.5) / 1000) for i in range(1000)])
    assert torch.bincount(drawn, minlength=4).tolist() == [200, 0, 500, 300]


def test_the_highest_level_draws_a_label_even_where_probabilities_sum_to_less_than_one():
    assert label_at(torch.tensor([[0.5, 0.4999]]), 0.99999).tolist() == [1]


def test_with_a_frozen_backbone_nothing_is_held():
    learner = synthetic_learner("ewc", bcb_lrscale=0.0)
    learn(learner, [0, 1])
    assert learner.fisher == {} and learner.memory_bytes()["statistics"] == 0


def batch_gradients(learner, task, batches):
    """Squared gradient of each batch's mean loss over all classes seen, by backward() as PyCIL takes it."""
    squares = []
    for images, labels in batches:
        learner.net.zero_grad()
        loss = -learner.net(images).log_softmax(dim=1)[torch.arange(len(labels)), labels].mean()
        loss.backward()
        squares.append({name: p.grad.square() for name, p in learner.held_parameters().items() if p.grad is not None})
    return squares


def test_the_batchwise_fisher_is_the_mean_over_batches_of_the_squared_gradient_of_the_batchs_mean():
    learner = synthetic_learner("ewc", ewc_fisher="batch", ewc_fisher_max=1e9, batch_size=10)
    learn(learner, [0])
    batches = list(learner.data.batches("train", 0, batch_size=10, augment=False,
                                        shuffle_seed=seed_of(learner.config.torch_seed, "fisher batches", 0)))
    assert [len(labels) for _, labels in batches] == [10, 10, 4]
    squares = batch_gradients(learner, 0, batches)
    for name, f in learner.fisher.items():
        expected = sum(each.get(name, torch.zeros_like(f)) for each in squares) / 3
        torch.testing.assert_close(f, expected, rtol=1e-3, atol=1e-9)


def test_the_batchwise_fisher_is_a_mean_over_tasks_by_classes_around_the_newest_weights():
    learner = synthetic_learner("ewc", ewc_fisher="batch", ewc_fisher_max=1e9)
    learn(learner, [0, 1])
    first = {name: f.clone() for name, f in learner.fisher.items()}
    learn(learner, [2])
    third = learner.batch_fisher(2)
    for name, p in learner.held_parameters().items():
        torch.testing.assert_close(learner.fisher[name], 4 / 6 * first[name] + 2 / 6 * third[name])
        assert torch.equal(learner.anchor[name], p)


def test_the_papers_fisher_of_one_image_at_a_time_is_larger_than_the_batchwise_one():
    sizes = {}
    for kind in ("paper", "batch"):
        learner = synthetic_learner("ewc", ewc_fisher=kind, ewc_fisher_max=1e9, batch_size=24)
        learn(learner, [0])
        sizes[kind] = sum(f.sum().item() for f in learner.fisher.values())
    assert sizes["paper"] > 5 * sizes["batch"]
