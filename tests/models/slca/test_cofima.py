"""CoMA's and CoFiMA's averages of the backbone."""

import pytest
import torch

from convs.states import move_towards
from models.finetuned.ewc import estimate_fisher
from tests.support import learn, synthetic_learner
from utils.run.monitor import Monitor


def after_two_tasks(method, **settings):
    """The learner, and its backbone's parameters before the second task and as stage 1 left them in it."""
    learner = synthetic_learner(method, bcb_lrscale=1.0, epochs=2, **settings)
    learn(learner, [0])
    before = copied(learner)
    learner.begin_task(1)
    learner.train(1, Monitor())
    trained = copied(learner)
    learner.end_task(1, Monitor())
    return learner, before, trained


def copied(learner):
    return {name: p.detach().clone() for name, p in learner.net.backbone.named_parameters()}


def test_coma_takes_the_share_of_the_new_weights():
    learner, before, trained = after_two_tasks("coma", coma_alpha=0.25)
    for name, weight in copied(learner).items():
        torch.testing.assert_close(weight, 0.75 * before[name] + 0.25 * trained[name])


def test_cofima_weighs_every_weight_by_both_fisher_informations():
    learner, before, trained = after_two_tasks("cofima", coma_alpha=0.25, cofima_fisher_max=1.0)
    again = synthetic_learner("cofima", bcb_lrscale=1.0, epochs=2, coma_alpha=0.25, cofima_fisher_max=1.0)
    learn(again, [0])
    old, new = again.fisher, learner.fisher
    for name, weight in copied(learner).items():
        share = 0.25 * new[name].double() / (0.75 * old[name].double() + 0.25 * new[name].double())
        expected = before[name].double() + share * (trained[name].double() - before[name].double())
        known = torch.minimum(old[name], new[name]) > 1e-10  # elsewhere one side's information is raised to the least
        torch.testing.assert_close(weight.double()[known], expected[known], rtol=1e-3, atol=1e-5)


def test_cofima_with_equal_fisher_is_coma():
    learner, before, trained = after_two_tasks("cofima", cofima_fisher_max=1e-30)  # all are cut to the same
    for name, weight in move_towards(before, trained, 0.4).items():
        torch.testing.assert_close(copied(learner)[name], weight)


@pytest.mark.parametrize("method", ["coma", "cofima"])
def test_with_alpha_0_the_backbone_stays_as_the_first_task_left_it(method):
    learner, before, trained = after_two_tasks(method, coma_alpha=0.0)
    assert any(not torch.equal(weight, trained[name]) for name, weight in before.items())
    for name, weight in copied(learner).items():
        torch.testing.assert_close(weight, before[name])


@pytest.mark.parametrize("method", ["coma", "cofima"])
def test_with_alpha_1_it_is_slca_and_else_it_is_not(method):
    slca = synthetic_learner("slca", bcb_lrscale=1.0, epochs=2)
    learn(slca, [0, 1])
    for alpha, same in ((1.0, True), (0.4, False)):
        learner, _, _ = after_two_tasks(method, coma_alpha=alpha)
        close = [torch.allclose(p, learner.net.get_parameter(name), atol=1e-6) for name, p in slca.net.named_parameters()]
        assert all(close) is same


def test_fisher_is_cut_kept_and_counted():
    learner = synthetic_learner("cofima", cofima_fisher_max=1e-6, bcb_lrscale=1.0)
    learn(learner, [0])
    assert max(f.max().item() for f in learner.fisher.values()) == pytest.approx(1e-6)
    trained = sum(p.numel() for p in learner.net.backbone.parameters())
    plain = synthetic_learner("slca", bcb_lrscale=1.0)
    learn(plain, [0])
    assert learner.memory_bytes()["statistics"] == plain.memory_bytes()["statistics"] + 4 * trained
    assert learner.planned_statistics(2, 12) == plain.planned_statistics(2, 12) + 4 * trained


def test_the_fisher_information_is_that_of_the_drawn_labels():
    learner = synthetic_learner("cofima", bcb_lrscale=1.0)
    learner.begin_task(0)
    parameters = learner.averaged_parameters()
    whole, one = (estimate_fisher(learner, 0, parameters, n) for n in (24, 1))
    assert all(torch.isfinite(f).all() and (f >= 0).all() for f in whole.values())
    assert any(not torch.equal(whole[name], one[name]) for name in whole)


def test_a_frozen_backbone_is_left_alone():
    learner = synthetic_learner("cofima", bcb_lrscale=0.0)
    learn(learner, [0, 1])
    assert learner.fisher == {}
