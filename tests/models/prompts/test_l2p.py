"""L2P's choice of prompts and its loss, image by image."""

import pytest
import torch
from torch.nn import functional as F

from models.prompts.l2p import PromptPool
from tests.support import StubData, make_config, make_learner
from utils.errors import UserError


def pool():
    return PromptPool(pool=5, length=2, top_k=3, dim=4, generator=torch.Generator().manual_seed(0))


def test_each_image_takes_the_prompts_whose_keys_have_the_largest_cosine():
    prompts, query = pool(), torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    prompts.keys.data = torch.randn(5, 4, generator=torch.Generator().manual_seed(2))
    prompt, loss = prompts.for_training(query)
    total = 0.0
    for image, tokens in zip(query, prompt.tokens, strict=True):
        cosines = torch.stack([F.cosine_similarity(image, key, dim=0) for key in prompts.keys])
        best = cosines.argsort(descending=True)[:3]
        assert torch.equal(tokens, torch.cat([prompts.tokens[m] for m in best]))
        total += (1 - cosines[best]).sum()
    torch.testing.assert_close(loss, total / 6)


def test_only_chosen_prompts_and_keys_get_a_gradient():
    prompts = pool()
    prompts.keys.data = torch.eye(5, 4) + torch.tensor([0.0, 0.0, 0.0, 0.0, -1.0])[:, None]
    query = torch.tensor([[3.0, 2.0, 1.0, -5.0]])
    prompt, loss = prompts.for_training(query)
    (prompt.tokens.sum() + loss).backward()
    assert prompts.tokens.grad.flatten(1).any(dim=1).tolist() == [True, True, True, False, False]
    assert prompts.keys.grad.any(dim=1).tolist() == [True, True, True, False, False]


def test_more_prompts_than_the_pool_has_is_a_user_error():
    with pytest.raises(UserError, match=r"prompt_top_k: got 4, allowed: 1 to 3"):
        make_learner(make_config(model_name="l2p", prompt_pool=3), StubData([2]))
