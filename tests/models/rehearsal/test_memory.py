"""The exemplar memory: budgets, herding, and what training sees."""

import numpy as np
import pytest
import torch

from models.rehearsal import memory
from models.rehearsal.memory import exemplar_means, herd, herd_classes
from tests.support import learn, synthetic_learner
from tests.waits import Waits
from utils.errors import UserError


def kept_of_each_class(learner):
    return np.bincount(learner.data.labels_of("train", learner.memory), minlength=learner.stream.classes_upto(learner.task)).tolist()


def test_herding_follows_the_greedy_algorithm_written_out():
    features = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    unit = (features / features.norm(dim=1, keepdim=True)).double().numpy()
    mean, chosen = unit.mean(axis=0), []
    for k in range(1, 5):
        costs = {i: np.linalg.norm(mean - (unit[i] + sum(unit[j] for j in chosen)) / k) for i in range(9) if i not in chosen}
        chosen.append(min(costs, key=costs.get))
    assert herd(features, 4).tolist() == chosen


@pytest.mark.parametrize("at_once", [1, 2**20])
def test_classes_are_herded_together_as_one_by_one(at_once, monkeypatch):
    monkeypatch.setitem(memory.HERDED_NUMBERS, "cpu", at_once)
    features = torch.randn(70, 6, generator=torch.Generator().manual_seed(0))
    features[50:60] = features[40]  # of equal ones the first is taken first
    positions = torch.randperm(70, generator=torch.Generator().manual_seed(1)).split([0, 1, 5, 30, 34])
    found = herd_classes(features, positions, 7)
    assert [each.tolist() for each in found] == [herd(features[each], 7).tolist() for each in positions]
    assert [len(each) for each in found] == [0, 1, 5, 7, 7]


def test_herding_waits_for_no_choice():
    with Waits() as waits:
        herd(torch.randn(30, 5), 20)
    assert waits.count == 0


def test_herding_gives_each_image_once_and_no_more_than_there_are():
    assert sorted(herd(torch.randn(4, 3), 10).tolist()) == [0, 1, 2, 3]


def test_memory_size_is_shared_equally_by_the_classes_seen():
    learner = synthetic_learner("replay", memory_size=20)
    learn(learner, [0])
    assert kept_of_each_class(learner) == [10, 10]
    first = learner.memory.copy()
    learn(learner, [1])
    assert kept_of_each_class(learner) == [5, 5, 5, 5]
    assert learner.memory[:5].tolist() == first[:5].tolist()  # a smaller share is the front of the larger one
    learn(learner, [2])
    assert kept_of_each_class(learner) == [3] * 6  # 20 // 6


def test_fixed_memory_keeps_memory_per_class_of_every_class():
    learner = synthetic_learner("replay", fixed_memory=True, memory_per_class=4, memory_size=0)
    learn(learner, [0, 1, 2])
    assert kept_of_each_class(learner) == [4] * 6


def test_an_epoch_sees_the_new_images_and_the_memory_once_each():
    learner = synthetic_learner("replay", memory_size=20)
    learn(learner, [0])
    labels = torch.cat([labels for _, labels in learner.training_batches(1, 0)])
    assert torch.bincount(labels).tolist() == [10, 10, 12, 12]


def test_all_heads_train_in_a_later_task():
    learner = synthetic_learner("replay")
    learn(learner, [0])
    before = learner.net.heads[0].weight.detach().clone()
    learn(learner, [1])
    assert not torch.equal(before, learner.net.heads[0].weight)


def test_bytes_of_the_memory_are_those_of_its_images():
    learner = synthetic_learner("replay", memory_size=20)
    learn(learner, [0, 1])
    assert learner.memory_bytes()["images"] == 20 * 16 * 16 * 3


@pytest.mark.parametrize("settings", [{"memory_size": 0}, {"memory_size": 5}, {"fixed_memory": True, "memory_size": 20}])
def test_a_memory_too_small_for_one_image_of_each_class_is_explained(settings):
    with pytest.raises(UserError, match=r"memory_(size|per_class): replay keeps images"):
        synthetic_learner("replay", **settings)


@pytest.mark.parametrize("method", ["replay", "icarl", "ewc", "lwf", "gdumb", "derpp", "bic", "gem", "coil"])
def test_a_restored_learner_ends_a_task_bit_for_bit_as_the_one_that_went_on(method):
    straight, before = synthetic_learner(method), synthetic_learner(method)
    learn(straight, [0, 1])
    learn(before, [0])
    resumed = synthetic_learner(method)
    resumed.load_network_state({k: v.clone() for k, v in before.network_state().items()}, 0)
    resumed.load_extra_state({k: v.clone() for k, v in before.extra_state().items()})
    learn(resumed, [1])
    for name, tensor in {**straight.network_state(), **straight.extra_state()}.items():
        assert torch.equal(tensor, {**resumed.network_state(), **resumed.extra_state()}[name]), name


def test_class_means_average_directions_not_lengths():
    features = torch.tensor([[10.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    means = exemplar_means(features, torch.tensor([0, 0, 1]), 2)
    torch.testing.assert_close(means, torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, 1.0]]))
