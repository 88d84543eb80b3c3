"""Predictions of several passes against image by image loops."""

import pytest
import torch

from utils.formulas.passes import larger_softmax, least_entropy, mos_probabilities, orthogonality, self_refined, tuna_probabilities

GENERATOR = torch.Generator().manual_seed(0)
TASKS = torch.tensor([0, 0, 1, 1, 2, 2])


def refine_one(start, logits, rounds):
    """Follow one image: class -> task -> that adapter's class, until the task repeats or the rounds are over."""
    task, asked = int(TASKS[start]), 1
    while asked < rounds:
        following = int(TASKS[int(logits[task].argmax())])
        if following == task:
            break
        task, asked = following, asked + 1
    return logits[task]


@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_every_image_follows_its_own_way_and_stops(rounds):
    logits, start = torch.randn(50, 3, 6, generator=GENERATOR), torch.randint(6, (50,), generator=GENERATOR)
    found = self_refined(start, logits, TASKS, rounds)
    for n in range(50):
        assert torch.equal(found[n], refine_one(int(start[n]), logits[n], rounds))


def test_images_that_go_round_in_circles_stop_after_four_adapters():
    logits = torch.zeros(1, 3, 6)
    logits[0, 0, 2] = logits[0, 1, 0] = 1.0  # adapter 0 says task 1, adapter 1 says task 0
    assert torch.equal(self_refined(torch.tensor([0]), logits, TASKS), logits[:, 1])  # 0, 1, 0, 1


def test_one_adapter_gives_its_own_logits():
    logits = torch.randn(4, 1, 6, generator=GENERATOR)
    found = self_refined(torch.tensor([0, 3, 5, 1]), logits, torch.zeros(6, dtype=torch.long))
    assert torch.equal(found, logits[:, 0])


def test_sums_of_softmaxes():
    first, second, three = torch.randn(4, 6), torch.randn(4, 6), torch.randn(4, 3, 6)
    torch.testing.assert_close(mos_probabilities(first, second, 3), first.softmax(1) + (3 * second).softmax(1))
    torch.testing.assert_close(tuna_probabilities(three, first).sum(dim=1), torch.full((4,), 2.0))


def test_the_surest_adapter_of_each_image_is_taken():
    logits = torch.randn(30, 3, 6, generator=GENERATOR)
    found = least_entropy(logits)
    for n in range(30):
        entropies = [torch.distributions.Categorical(logits=row).entropy().item() for row in logits[n]]
        torch.testing.assert_close(found[n], logits[n, entropies.index(min(entropies))].softmax(0))


def test_the_larger_softmax_of_both():
    first, second = torch.tensor([[5.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 5.0]])
    found = larger_softmax(first, second)
    torch.testing.assert_close(found, torch.tensor([[first.softmax(1)[0, 0], second.softmax(1)[0, 1].maximum(first.softmax(1)[0, 1]),
                                                     second.softmax(1)[0, 2]]]))


def test_orthogonality_is_least_for_orthogonal_rows():
    rows = 5 * torch.eye(4)
    turned = rows.clone()
    turned[1] = rows[0]
    assert orthogonality(rows) < 1e-3 < orthogonality(turned)
    logits = (turned @ turned.T / 0.8).log_softmax(dim=1)
    torch.testing.assert_close(orthogonality(turned), -logits.diagonal().mean())
