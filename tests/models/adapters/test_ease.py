"""EASE: measured and synthesised prototypes with loops, weighted cosines, and its parts switched off."""

import math

import pytest
import torch

from tests.models.test_first_session import images
from tests.support import learn, synthetic_learner

SMALL = {"adapter_width": 4, "lr": 0.5, "epochs": 2}


@torch.enable_grad()
def ease(tasks=3, **settings):
    learner = synthetic_learner("ease", **{**SMALL, **settings})
    learn(learner, range(tasks))
    learner.net.eval()
    return learner


def cos(a, b):
    return float(a @ b / (a.norm() * b.norm()))


@torch.no_grad()
def mean_under(learner, label, adapter):
    """The class's mean feature with one adapter selected, image by image."""
    learner.adapters.select(adapter)
    rows = [learner.net.backbone(image[None])[0] for batch, labels in learner.data.batches("train", label // 2, batch_size=8, augment=False)
            for image, c in zip(batch, labels.tolist(), strict=True) if c == label]
    learner.adapters.select(learner.task)
    return sum(rows) / len(rows)


def test_prototypes_are_measured_up_to_the_own_task_and_synthesised_beyond():
    learner = ease()
    task_of = [0, 0, 1, 1, 2, 2]
    measured = {(c, j): mean_under(learner, c, j) for c in range(6) for j in range(task_of[c] + 1)}
    for c in range(6):
        i = task_of[c]
        for j in range(3):
            if j <= i:
                expected = measured[c, j]
            else:
                newer = [k for k in range(6) if task_of[k] >= j]
                weights = [math.exp(cos(measured[c, i], measured[k, i])) for k in newer]
                expected = sum(w * measured[k, j] for w, k in zip(weights, newer, strict=True)) / sum(weights)
            torch.testing.assert_close(learner.prototypes[c, j], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_scores_are_the_cosine_under_the_own_adapter_and_a_share_of_the_others():
    learner = ease(ease_others=0.3)
    x = images(learner)
    found = learner.scores(learner.features(x))
    by_adapter = []
    for j in range(3):
        learner.adapters.select(j)
        by_adapter.append(learner.net.backbone(x))
    for n in range(len(x)):
        for c in range(6):
            cosines = [cos(by_adapter[j][n], learner.prototypes[c, j]) for j in range(3)]
            expected = cosines[c // 2] + 0.3 / 2 * sum(cosines[j] for j in range(3) if j != c // 2)
            assert found[n, c].item() == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_after_one_task_it_is_the_cosine_with_the_class_means():
    learner = ease(tasks=1)
    features = learner.features(images(learner))
    expected = [[cos(row, mean_under(learner, c, 0)) for c in range(2)] for row in features]
    torch.testing.assert_close(learner.scores(features), torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_one_adapter_trains_and_the_older_ones_never_move_again():
    learner = ease(tasks=1)
    names = [name for name, p in learner.net.backbone.model.named_parameters() if p.requires_grad]
    assert names and all(".adapters.0." in name for name in names)
    first = {name: tensor.clone() for name, tensor in learner.adapters.state(0).items()}
    start = {name: tensor.clone() for name, tensor in learner.adapters.state(1).items()}
    learn(learner, [1])
    assert all(torch.equal(first[name], tensor) for name, tensor in learner.adapters.state(0).items())
    assert any(not torch.equal(start[name], tensor) for name, tensor in learner.adapters.state(1).items())
    assert {name.split("adapters.")[1].split(".")[0] for name in learner.network_state() if "adapters" in name} == {"0", "1", "2"}


@torch.no_grad()
def test_switching_its_parts_off_changes_the_scores():
    """Wrong-way check: idle adapters leave the frozen backbone's cosines; a = 0 leaves the own adapter alone."""
    ncm = synthetic_learner("ncm")
    learn(ncm, range(3))
    frozen = ncm.scores(ncm.features(images(ncm)))
    idle, moved = ease(lr=1e-12, ease_others=0.0), ease(ease_others=0.0)
    x = images(idle)
    torch.testing.assert_close(idle.scores(idle.features(x)), frozen, rtol=1e-4, atol=1e-5)
    own = moved.scores(moved.features(x))
    assert not torch.allclose(own, frozen, atol=1e-4)
    moved.config = moved.config.model_copy(update={"ease_others": 0.5})
    assert not torch.allclose(moved.scores(moved.features(x)), own, atol=1e-4)


def test_a_class_without_images_never_wins_and_spoils_no_prototype():
    learner = ease()
    learner.prototypes[3] = float("nan")
    learner.synthesise()
    with torch.no_grad():
        scores = learner.scores(learner.features(images(learner)))
    assert (scores[:, 3] == -torch.inf).all() and scores[:, [0, 1, 2, 4, 5]].isfinite().all()


def test_memory_is_as_planned_and_features_have_a_pass_per_task():
    learner = ease()
    assert learner.memory_bytes()["statistics"] == learner.planned_statistics(6, None) == 6 * 3 * 16 * 4
    assert learner.features(images(learner)).shape == (4, 3 * 16) and learner.feature_dim == 48
