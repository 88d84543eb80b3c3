"""Adaptation in the first task: off by default, gone when off, frozen afterwards, kept by checkpoints."""

import pytest
import torch
from torch import nn

import trainer
from convs.heads import CosineHead
from convs.parts import switched_off
from models import learner_class
from models.tools.export import export
from models.tools.predict import load_learner
from tests.run_files import assert_same_run, only_run, tiny_config
from tests.support import learn, make_config, synthetic_learner
from tests.utils.run.test_resume import run_stopping_at_every_checkpoint
from trainer import train
from utils.errors import UserError
from utils.run.monitor import Monitor

FROZEN = ("ncm", "lda", "fecam", "ranpac")
KINDS = ("adapter", "ssf", "vpt", "vpt_shallow", "vpt_deep", "full", "lora")
SMALL = {"adapter_width": 4, "vpt_tokens": 2, "lora_rank": 2, "lr": 0.5, "epochs": 3}


def images(learner):
    return next(iter(learner.data.batches("test", 0, batch_size=6, augment=False)))[0]


@torch.no_grad()
def scores(learner):
    learner.net.eval()
    return learner.scores(learner.features(images(learner)))


@pytest.mark.parametrize("method", FROZEN)
def test_without_it_nothing_trains_and_nothing_is_added(method):
    learner = synthetic_learner(method)
    before = {name: tensor.clone() for name, tensor in learner.net.backbone.state_dict().items()}
    learn(learner, range(2))
    after = learner.net.backbone.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in after)
    assert not learner.ever_trained and not len(learner.net.heads) and "first session" not in learner.title_of(learner.config)
    assert torch.equal(learner.features(images(learner)), learner.net.backbone(images(learner)))


@pytest.mark.parametrize("method", FROZEN)
def test_with_it_the_scores_change_and_with_its_rate_next_to_nothing_they_do_not(method):
    plain, adapted, idle = (synthetic_learner(method, **{**SMALL, "first_session": kind, "lr": lr})
                            for kind, lr in (("none", 0.5), ("adapter", 0.5), ("adapter", 1e-12)))
    for learner in (plain, adapted, idle):
        learn(learner, range(2))
    assert (scores(plain) - scores(adapted)).abs().max() > 1e-3 * scores(plain).abs().max()
    torch.testing.assert_close(scores(idle), scores(plain), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_task_moves_the_part_and_later_tasks_move_nothing(kind):
    learner = synthetic_learner("ncm", **{**SMALL, "first_session": kind, "lr": 0.1})
    start = {name: p.clone() for name, p in learner.net.backbone.model.named_parameters()}
    learn(learner, [0])
    first = {name: p.clone() for name, p in learner.net.backbone.model.named_parameters()}
    moved = {name for name in first if not torch.equal(first[name], start[name])}
    assert moved and moved <= learner.adapted and (kind == "full" or "patch_embed.proj.weight" not in moved)
    learn(learner, [1, 2])
    assert all(torch.equal(first[name], p) for name, p in learner.net.backbone.model.named_parameters())
    assert not learner.backbone_trains and not len(learner.net.heads)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_learner_that_loads_it_scores_the_same_long_after_it_was_frozen(kind):
    saved, loaded = (synthetic_learner("ncm", **{**SMALL, "first_session": kind}) for _ in range(2))
    learn(saved, range(3))
    loaded.load_network_state({name: tensor.clone() for name, tensor in saved.network_state().items()}, 2)
    loaded.load_extra_state({name: tensor.clone() for name, tensor in saved.extra_state().items()})
    assert torch.equal(scores(saved), scores(loaded)) and not loaded.backbone_trains


@pytest.mark.parametrize(("head", "kind"), [("cosine", CosineHead), ("linear", nn.Linear)])
def test_its_head_sees_the_classes_of_the_first_task(head, kind):
    learner = synthetic_learner("ranpac", **{**SMALL, "first_session": "ssf", "first_session_head": head})
    learner.begin_task(0)
    assert isinstance(learner.net.heads[0], kind) and learner.net.head_sizes == [2]
    names = {group["name"]: group["lr"] for group in learner.parameter_groups(0)}
    assert names == {"backbone": 0.5, "head": 0.5}
    assert [learner.learning_rate(0.5, epoch) for epoch in (0, 3)] == [0.5, 0.0]
    assert learner.planned_images(0, 24) == 24 and learner.planned_images(1, 24) == 0


def test_the_loss_of_the_first_task_falls():
    learner = synthetic_learner("lda", **{**SMALL, "first_session": "adapter", "epochs": 30})
    losses = []
    monitor = Monitor()
    monitor.end_epoch = lambda task, epoch, epochs, steps, *rest: losses.append(sum(steps) / len(steps))
    learner.learn_task(0, monitor)
    assert losses[-1] < 0.9 * losses[0]


def test_pretrained_features_are_there_with_the_part_switched_off():
    learner, plain = synthetic_learner("ncm", **SMALL, first_session="vpt_deep"), synthetic_learner("ncm")
    learn(learner, range(2))
    with switched_off(learner.net.backbone.model):
        assert torch.equal(learner.features(images(learner)), plain.features(images(plain)))


@pytest.mark.parametrize(("method", "kind"), [("ranpac", "adapter"), ("aper", "full"), ("fecam", "lora"), ("slca", "adapter")])
def test_a_run_with_it_resumes_bit_for_bit_predicts_and_is_exported(method, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "write_report", lambda result, folder: None)
    config = tiny_config(model_name=method, **{**SMALL, "first_session": kind})
    result = train(config, tmp_path / "whole", name="run")
    assert run_stopping_at_every_checkpoint(config, tmp_path / "stopped", monkeypatch) >= 4
    whole = only_run(tmp_path / "whole" / "run")
    assert_same_run(whole, only_run(tmp_path / "stopped" / "run"))
    assert result.title == ("APER-finetune" if method == "aper" else f"{learner_class(method).title}, first session: {kind}")
    assert export(load_learner(whole), tmp_path / "model.pt2") <= 1e-4


def test_a_width_of_another_kind_of_method_is_still_refused():
    with pytest.raises(Exception, match="adapter_width"):
        make_config(model_name="finetune", adapter_width=4)


# Methods that keep Gaussians ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["slca", "coma", "cofima"])
@pytest.mark.parametrize("readout", ["ca", "rgda"])
def test_with_gaussians_the_first_task_moves_the_part_and_later_ones_the_heads_at_most(method, readout):
    learner = synthetic_learner(method, **{**SMALL, "first_session": "adapter", "lr": 0.1, "readout": readout, "ca_epochs": 1})
    learn(learner, [0])
    first = {name: p.clone() for name, p in learner.net.backbone.model.named_parameters()}
    learner.begin_task(1)
    untrained = learner.net.heads[1].weight.clone()
    learner.train(1, Monitor())
    learner.end_task(1, Monitor())
    assert all(torch.equal(first[name], p) for name, p in learner.net.backbone.model.named_parameters())
    assert torch.equal(learner.net.heads[1].weight, untrained) == (readout == "rgda")
    assert learner.planned_images(0, 24) == 24 and learner.planned_images(1, 24) == (24 if readout == "ca" else 0)


def test_with_gaussians_the_first_task_has_one_rate_that_falls_by_a_cosine():
    learner = synthetic_learner("slca", **{**SMALL, "first_session": "ssf"})
    learner.begin_task(0)
    assert {group["name"]: group["lr"] for group in learner.parameter_groups(0)} == {"backbone": 0.5, "head": 0.5}
    assert learner.learning_rate(0.5, 3) == 0.0
    learner.begin_task(1)
    assert learner.learning_rate(0.5, 0) == 0.5


def test_with_gaussians_the_adapted_features_are_what_is_read():
    plain, adapted = (synthetic_learner("slca", **{**SMALL, "first_session": kind, "bcb_lrscale": 0.0, "readout": "lda"})
                      for kind in ("none", "adapter"))
    for learner in (plain, adapted):
        learn(learner, range(2))
    assert (plain.gaussians.means() - adapted.gaussians.means()).abs().max() > 1e-3


@pytest.mark.parametrize("method", ["slca_pp", "ssiat", "sldc", "e2_lora", "slca_best"])
def test_methods_with_parts_of_their_own_refuse_it(method):
    with pytest.raises(UserError, match=f"first_session: got 'ssf', allowed: 'none' for {method}"):
        synthetic_learner(method, first_session="ssf", **({"val_fraction": 0.2} if method == "slca_best" else {}))


def test_a_frozen_backbone_under_a_read_out_that_needs_no_head_has_no_stage_1():
    learner = synthetic_learner("slca", bcb_lrscale=0.0, readout="rgda", epochs=3)
    told = []
    monitor = Monitor()
    monitor.log = told.append
    monitor.end_epoch = lambda *args: pytest.fail("an epoch that nothing reads")
    learner.learn_task(0, monitor)
    assert any("no stage 1" in line for line in told)
