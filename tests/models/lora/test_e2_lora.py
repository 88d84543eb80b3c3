"""E2-LoRA's rotation, release and distillation, on a trained micro ViT."""

import pytest
import torch

from models.lora.e2_lora import old_logits_loss, width_of
from tests.support import learn, synthetic_learner
from utils.run.monitor import Monitor


def trained(tasks, **settings):
    learner = synthetic_learner("e2_lora", lr=0.05, bcb_lrscale=1.0, epochs=2, ca_epochs=1, ca_samples=8, **settings)
    learn(learner, tasks)
    return learner


def test_the_rotation_changes_no_output_and_orders_the_ranks():
    learner = synthetic_learner("e2_lora", lr=0.05, bcb_lrscale=1.0, epochs=2)
    learner.begin_task(0)
    learner.train(0, Monitor())
    images = torch.randn(4, 3, 16, 16)
    learner.net.eval()
    before = learner.net.features(images)
    learner.rotate(0)
    torch.testing.assert_close(learner.net.features(images), before, atol=1e-5, rtol=1e-4)
    for name, energies in learner.energies.items():
        assert (energies.diff() <= 1e-6).all() and energies[0] > 0, name


def test_kept_ranks_leave_room_for_every_task_and_all_columns_are_orthonormal():
    learner = trained([0, 1])
    learner.begin_task(2)
    for layer in learner.pairs.layers.values():
        for target, bank in layer.pairs.items():
            width = width_of(layer, target)
            ranks = [len(bank[str(t)].lora_A) for t in range(3)]
            assert sum(ranks) == width and sum(ranks[:2]) <= width * 2 // 3
            columns = torch.cat([bank[str(t)].lora_B for t in range(3)], dim=1).detach()
            torch.testing.assert_close(columns.T @ columns, torch.eye(width), atol=1e-4, rtol=0)


def test_the_new_pair_changes_nothing_until_its_a_trains_and_its_b_never_moves():
    learner = trained([0])
    learner.begin_task(1)
    new = dict(learner.pairs.of(1))
    assert all(not pair.lora_A.any() for pair in new.values())
    columns = {name: pair.lora_B.detach().clone() for name, pair in new.items()}
    kept = {name: pair.lora_A.detach().clone() for name, pair in learner.pairs.of(0)}
    learner.train(1, Monitor())
    assert all(torch.equal(pair.lora_B, columns[name]) for name, pair in learner.pairs.of(1))
    assert any(pair.lora_A.any() for _, pair in learner.pairs.of(1))
    assert all(torch.equal(pair.lora_A, kept[name]) for name, pair in learner.pairs.of(0))


def test_distillation_is_t_squared_kl_and_its_teacher_lacks_the_newest_pair():
    logits, old = torch.randn(5, 3), torch.randn(5, 3)
    expected = 0.0
    for new_row, old_row in zip(logits, old, strict=True):
        p, q = (old_row / 2).softmax(dim=0), (new_row / 2).softmax(dim=0)
        expected += 4 * (p * (p / q).log()).sum() / 5
    torch.testing.assert_close(old_logits_loss(logits, old, 2.0), expected)
    learner = trained([0])
    images, labels = next(iter(learner.data.batches("train", 1, batch_size=8, augment=False)))
    learner.begin_task(1)
    learner.net.eval()
    before = learner.net(images)[:, :2].detach()
    with torch.no_grad():
        for _, pair in learner.pairs.of(1):
            pair.lora_A.normal_()
    torch.testing.assert_close(learner.teacher_logits(images), before)
    assert not torch.allclose(learner.net(images)[:, :2], before, atol=1e-2)
    loss, _, targets = learner.training_loss(learner.training_module(1), images, labels)
    everything = learner.net(images)
    plain = torch.nn.functional.cross_entropy(everything[:, 2:], targets)
    torch.testing.assert_close(loss, plain + 0.25 * old_logits_loss(everything[:, :2], before, 2.0))


@pytest.mark.parametrize("switch", [{"e2_distill": 0.0}, {"ca_epochs": 0}])
def test_switching_a_part_off_changes_the_result(switch):
    whole, without = (synthetic_learner("e2_lora", **{"lr": 0.05, "bcb_lrscale": 1.0, "ca_epochs": 1, "ca_samples": 8, **more})
                      for more in ({}, switch))
    for learner in (whole, without):
        learn(learner, [0, 1])
    assert not torch.allclose(torch.cat([p.flatten() for p in whole.net.parameters()]),
                              torch.cat([p.flatten() for p in without.net.parameters()]), atol=1e-5)


def test_its_own_defaults_hold_where_the_config_is_silent():
    c = synthetic_learner("e2_lora").config
    assert (c.bcb_lrscale, c.ca_epochs, c.ca_ridge, c.ca_start, c.e2_distill) == (0.05, 3, 2e-4, "aligned", 0.25)
