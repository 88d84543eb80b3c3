"""DualPrompt: which prompt which image gets, and what a new task starts from."""

import torch
from torch.nn import functional as F

from models.prompts.dualprompt import DualPrompts

QUERY = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


def prompts(task=2):
    made = DualPrompts(3, 6, e_length=2, e_layers=[1, 2], g_length=3, g_layers=[0, 1], generator=torch.Generator().manual_seed(0))
    made.task = task
    return made


def test_training_uses_the_tasks_own_prompt_and_pulls_its_key_to_the_queries():
    made = prompts(task=1)
    prompt, loss = made.for_training(QUERY)
    for image in range(4):
        assert torch.equal(prompt.prefixes[2][image], made.e_prompts[1, 1])
    torch.testing.assert_close(loss, 1 - F.cosine_similarity(QUERY, made.keys[1][None]).mean())


def test_testing_uses_the_prompt_of_the_nearest_key_among_the_tasks_seen():
    made = prompts(task=1)
    made.keys.data = torch.stack([QUERY[0], QUERY[1], QUERY[2]])  # the third key belongs to a task not seen yet
    found = made(QUERY[:3]).prefixes[2]
    assert torch.equal(found[0], made.e_prompts[0, 1])
    assert torch.equal(found[1], made.e_prompts[1, 1])
    assert torch.equal(found[2], made.e_prompts[int(F.cosine_similarity(QUERY[2:3], made.keys[:2]).argmax()), 1])


def test_a_block_with_both_prompts_gets_general_then_expert_keys():
    made = prompts()
    prefix = made.for_training(QUERY)[0].prefixes
    assert prefix[0].shape == (4, 2, 3, 6)
    assert torch.equal(prefix[1][0], torch.cat([made.g_prompts[1], made.e_prompts[2, 0]], dim=1))


def test_a_new_expert_prompt_starts_as_the_one_before_and_leaves_it_alone():
    made = prompts(task=0)
    before = made.e_prompts.detach().clone()
    made.begin_task(1)
    assert torch.equal(made.e_prompts[1], before[0])
    prompt, loss = made.for_training(QUERY)
    (prompt.prefixes[2].sum() + loss).backward()
    assert not made.e_prompts.grad[[0, 2]].any()
    assert not made.keys.grad[[0, 2]].any()
