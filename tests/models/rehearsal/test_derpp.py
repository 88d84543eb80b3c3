"""DER++'s loss, its reservoir, and the pairing of replayed images with their stored logits."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from models import stage1
from models.rehearsal.derpp import DERpp, derpp_loss, reservoir_slots
from tests.support import learn, make_config, synthetic_learner
from trainer import train


def test_loss_is_the_papers_three_terms_written_out():
    torch.manual_seed(0)
    logits, dark, seen = torch.randn(3, 4), torch.randn(2, 4), torch.randn(2, 4)
    stored, labels, seen_labels = torch.randn(2, 6), torch.tensor([3, 0, 1]), torch.tensor([2, 1])
    loss = derpp_loss(logits, labels, dark, stored, torch.tensor([2, 4]), seen, seen_labels, 0.3, 0.7)
    squares = [(stored[0, k] - dark[0, k]) ** 2 for k in range(2)] + [(stored[1, k] - dark[1, k]) ** 2 for k in range(4)]
    dark_term = sum(squares) / (2 * 6)  # two images with two and four known classes, six classes in all
    expected = F.cross_entropy(logits, labels) + 0.3 * dark_term + 0.7 * F.cross_entropy(seen, seen_labels)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("known", [2, 5, 10])
def test_the_dark_term_is_the_authors_mean_square_over_a_head_of_all_classes(known):
    torch.manual_seed(0)
    seen = torch.randn(3, 10)  # an image's logits of ten classes, of which `known` had a head when they were stored
    stored = F.pad(torch.randn(3, known), (0, 10 - known))
    now = torch.where(torch.arange(10) < known, seen, stored)  # classes without a head then: no change
    zero = torch.zeros(1, 10), torch.tensor([0])
    loss = derpp_loss(*zero, seen, stored, torch.full((3,), known), *zero, 1.0, 0.0) - F.cross_entropy(*zero)
    torch.testing.assert_close(loss, F.mse_loss(now, stored))


def test_reservoir_keeps_every_item_of_the_stream_equally_often():
    kept = np.zeros(30)
    for seed in range(2000):
        generator, memory = np.random.default_rng(seed), np.full(6, -1)
        for part in range(3):  # three epochs of ten items
            slots = reservoir_slots(int((memory >= 0).sum()), 6, 10 * part, 10, generator)
            for slot, item in slots.items():
                memory[slot] = 10 * part + item
        kept[memory] += 1
    expected, spread = 2000 * 6 / 30, (2000 * 0.2 * 0.8) ** 0.5
    assert np.abs(kept - expected).max() < 4 * spread


def test_replayed_images_come_with_their_own_logits():
    learner = synthetic_learner("derpp")
    learn(learner, [0])
    for (images, labels), positions in zip(*learner.replayed(1, 0, "logits"), strict=True):
        assert labels.tolist() == learner.data.labels_of("train", learner.memory[positions.numpy()]).tolist()
        plain = learner.data.batches("train", indices=learner.memory[positions.numpy()], batch_size=8, augment=False)
        torch.testing.assert_close(images, next(iter(plain))[0])


def test_stored_logits_are_those_of_the_network_when_the_image_was_stored():
    learner = synthetic_learner("derpp", epochs=1)
    learn(learner, [0])
    features, _ = learner.extract_images(learner.memory)
    torch.testing.assert_close(learner.logits[:, :2], learner.net.classify(features).detach(), rtol=1e-4, atol=1e-5)
    assert learner.known.tolist() == [2] * 20
    learn(learner, [1])
    assert set(learner.known.tolist()) == {2, 4} and not learner.logits[learner.known == 2][:, 2:].any()


def test_reservoir_never_holds_more_than_memory_size():
    learner = synthetic_learner("derpp", memory_size=7, epochs=3)
    learn(learner, [0, 1, 2])
    assert len(learner.memory) == 7 == len(learner.logits)


def test_a_run_stopped_inside_a_task_goes_on_with_the_same_reservoir(tmp_path, monkeypatch):
    config = make_config(model_name="derpp", memory_size=10, epochs=3, batch_size=8, dataset={
        "name": "tiny", "layout": "synthetic", "num_classes": 4, "image_size": 16, "train_per_class": 12, "test_per_class": 4})
    straight = train(config, tmp_path / "a").seeds[0]
    real = DERpp.training_batches

    def stopped(self, task, epoch):
        if (task, epoch) == (1, 2):
            raise KeyboardInterrupt
        return real(self, task, epoch)

    monkeypatch.setattr(DERpp, "training_batches", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "b")
    monkeypatch.undo()
    resumed = train(config, tmp_path / "b", resume=True).seeds[0]
    assert resumed.top1_curve == straight.top1_curve
    ends = [next((tmp_path / folder / "derpp").iterdir()) / "seed1993/checkpoints/task_02" for folder in "ab"]
    for name in ("weights.safetensors", "state.safetensors"):
        assert (ends[0] / name).read_bytes() == (ends[1] / name).read_bytes(), name


def test_a_step_in_two_parts_sees_the_same_replayed_images():
    seen = []
    for accumulate in (1, 2):
        learner = synthetic_learner("derpp", accumulate=accumulate, epochs=1)
        learn(learner, [0])
        learner.begin_task(1)
        batch = next(iter(learner.training_batches(1, 0)))
        stage1.backward_batch(learner, learner.net, batch, len(batch[0]))
        seen.append(learner.net.heads[0].weight.grad)
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-4, atol=1e-6)
