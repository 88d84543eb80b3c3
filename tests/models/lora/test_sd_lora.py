"""SD-LoRA's directions and magnitudes."""

import torch

from tests.support import learn, synthetic_learner
from utils.run.monitor import Monitor


def directions(learner, task):
    """B A / |B A| of the task's pairs by layer and target."""
    products = {name: (pair.lora_B @ pair.lora_A).detach() for name, pair in learner.pairs.of(task)}
    return {name: product / product.norm() for name, product in products.items()}


def learner_after(tasks, **settings):
    learner = synthetic_learner("sd_lora", lr=0.05, epochs=2, **settings)
    learn(learner, tasks)
    return learner


def test_old_directions_never_move_but_their_magnitudes_do():
    learner = learner_after([0])
    before = directions(learner, 0)
    learner.begin_task(1)
    magnitudes = {name: pair.magnitude.item() for name, pair in learner.pairs.of(0)}
    learner.train(1, Monitor())
    for name, direction in directions(learner, 0).items():
        assert torch.equal(direction, before[name])
    assert all(pair.magnitude.item() != magnitudes[name] for name, pair in learner.pairs.of(0))


def test_a_new_task_begins_with_the_network_as_the_last_one_left_it():
    learner = learner_after([0])
    images = torch.randn(3, 3, 16, 16)
    learner.net.eval()
    before = learner.net.features(images)
    learner.begin_task(1)
    learner.net.eval()
    torch.testing.assert_close(learner.net.features(images), before, atol=1e-5, rtol=1e-5)


def test_the_weights_are_the_sum_of_magnitudes_times_unit_directions():
    learner = learner_after([0, 1])
    learner.begin_task(2)  # freezes the second direction too; the third is 0
    layer = learner.pairs.layers["blocks.1.attn.qkv"]
    expected = layer.weight.detach().clone()
    for target, rows in (("q", slice(0, 16)), ("v", slice(32, 48))):
        for task in (0, 1):
            pair = layer.pairs[target][str(task)]
            product = pair.lora_B @ pair.lora_A
            expected[rows] += pair.magnitude * product / product.norm()
    torch.testing.assert_close(layer.merged_weight(), expected.detach(), atol=1e-5, rtol=1e-5)


def test_magnitudes_of_old_tasks_stay_where_they_are_not_trained():
    with_old, without = learner_after([0, 1]), learner_after([0, 1], sd_lora_train_old=False)
    for learner in (with_old, without):
        learner.begin_task(2)
    trained = {name for name, p in without.net.named_parameters() if p.requires_grad and name.endswith("magnitude")}
    assert trained and all(".2.magnitude" in name for name in trained)
    pairs = zip(with_old.pairs.of(0), without.pairs.of(0), strict=True)
    assert any(a.magnitude != b.magnitude for (_, a), (_, b) in pairs)  # the method's own part changes the result


def test_after_loading_only_the_newest_pair_may_be_frozen_next():
    saved, loaded = learner_after([0, 1]), synthetic_learner("sd_lora", lr=0.05, epochs=2)
    loaded.load_network_state(saved.network_state(), 1)
    for learner in (saved, loaded):
        learner.begin_task(2)
    assert all(torch.equal(p, q) for p, q in zip(saved.net.parameters(), loaded.net.parameters(), strict=True))
    assert [p.requires_grad for p in saved.net.parameters()] == [p.requires_grad for p in loaded.net.parameters()]


def test_a_backbone_that_may_not_train_keeps_its_pairs_at_rest():
    learner = learner_after([0, 1], bcb_lrscale=0.0)
    assert not any(p.requires_grad for p in learner.net.backbone.parameters())
    assert all(not pair.lora_B.any() for task in (0, 1) for _, pair in learner.pairs.of(task))
