"""LAE's two adapters and their ensemble."""

import pytest
import torch

from tests.support import learn, synthetic_learner
from utils.errors import UserError
from utils.run.monitor import Monitor


def adapter(learner, name):
    return torch.cat([p.detach().flatten() for p in learner.adapters.parameters(name)])


def after_one_task(**settings):
    learner = synthetic_learner("lae", lr=0.05, **settings)
    learn(learner, [0])
    return learner


def test_the_offline_adapter_is_the_moving_average_over_all_steps_of_later_tasks():
    learner = after_one_task(lae_decay=0.8, lae_freeze_epochs=0)
    seen = [adapter(learner, "online")]
    learner.begin_task(1)
    assert torch.equal(adapter(learner, "offline"), seen[0])
    real = learner.accumulate
    learner.accumulate = lambda: (seen.append(adapter(learner, "online")), real())
    learner.train(1, Monitor())
    expected = seen[0]
    for online in seen[1:]:
        expected = 0.8 * expected + 0.2 * online
    assert len(seen) == 1 + 3  # 24 images in batches of 8
    torch.testing.assert_close(adapter(learner, "offline"), expected)
    assert not torch.allclose(adapter(learner, "offline"), adapter(learner, "online"))


@pytest.mark.parametrize("rest", [0, 1, 2])
def test_the_online_adapter_rests_in_the_first_epochs_of_later_tasks_alone(rest):
    learner = synthetic_learner("lae", lr=0.05, epochs=2, lae_freeze_epochs=rest)
    states = []
    learner.after_epoch = lambda task, epoch: states.append(adapter(learner, "online"))
    start = adapter(learner, "online")
    learn(learner, [0, 1])
    moved = [not torch.equal(a, b) for a, b in zip([start, *states], states, strict=False)]
    assert moved == [True, True, rest < 1, rest < 2]


def test_the_larger_softmax_of_both_decides():
    learner = after_one_task(lae_decay=0.5, lae_freeze_epochs=0)
    learn(learner, [1])
    images = torch.randn(5, 3, 16, 16)
    learner.net.eval()
    both = []
    for name in ("online", "offline"):
        learner.adapters.select(name)
        both.append(learner.net(images).softmax(dim=1))
    learner.adapters.select("online")
    scores = learner.scores(learner.features(images))
    torch.testing.assert_close(scores, torch.maximum(*both))
    torch.testing.assert_close(learner.probabilities(learner.features(images)).sum(dim=1), torch.ones(5))
    for predict, expected in zip(("online", "offline"), both, strict=True):  # the ensemble switched off gives other scores
        alone = synthetic_learner("lae", lr=0.05, lae_decay=0.5, lae_freeze_epochs=0, lae_predict=predict)
        learn(alone, [0, 1])
        alone.net.eval()
        torch.testing.assert_close(alone.scores(alone.features(images)), expected)
        assert not torch.allclose(expected, scores)


def test_only_the_online_adapter_of_the_first_blocks_and_the_new_head_train():
    learner = after_one_task()
    learner.begin_task(1)
    trained = {name for name, p in learner.net.named_parameters() if p.requires_grad}
    assert all(".blocks.0.adapters.online." in name or name.startswith("heads.1.") for name in trained) and len(trained) == 4 + 2


def test_a_loaded_learner_keeps_the_offline_adapter_at_rest():
    saved, loaded = after_one_task(), synthetic_learner("lae", lr=0.05)
    learn(saved, [1])
    loaded.load_network_state(saved.network_state(), 1)
    assert [p.requires_grad for p in loaded.adapters.parameters("offline")] == [False] * 4
    assert torch.equal(adapter(loaded, "offline"), adapter(saved, "offline")) and loaded.feature_dim == 32


def test_more_blocks_than_there_are_is_a_user_error():
    with pytest.raises(UserError, match="lae_blocks: got 3, allowed: 1 to 2"):
        synthetic_learner("lae", lae_blocks=3)
