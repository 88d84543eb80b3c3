"""L2P's choice of prompts and its loss, image by image."""

import pytest
import torch
from torch.nn import functional as F

from models.prompts.l2p import PromptPool
from tests.support import StubData, make_config, make_learner, micro_backbone
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


def l2p(**settings):
    return make_learner(make_config(model_name="l2p", **settings), StubData([2, 2]))


def test_prompts_and_keys_start_in_the_range_of_the_release_that_is_named():
    for settings, low, high in (({}, 0.0, 0.01), ({"prompt_init": "pilot"}, -1.0, 1.0)):
        drawn = torch.cat([p.detach().flatten() for p in l2p(prompt_pool=100, **settings).prompts.parameters()])
        spread = (high - low) / 12**0.5
        assert low <= drawn.min() and drawn.max() < high
        assert abs(drawn.mean() - (low + high) / 2) < 6 * spread / len(drawn) ** 0.5 and abs(drawn.std() / spread - 1) < 0.1


def test_prompt_tokens_get_the_class_tokens_position_embedding_where_it_is_asked_for():
    plain, at_class = l2p(), l2p(prompt_position="class")
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    at_class.net.load_state_dict(plain.net.state_dict())
    model, prompts = at_class.net.backbone.model, at_class.prompts
    query = at_class.net.backbone.query(images)
    tokens = prompts(query).tokens  # (2, n, D)
    patches = model.patch_embed(images)
    sequence = torch.cat([model.cls_token.expand(2, -1, -1), tokens, patches], dim=1)  # in LAMDA-PILOT's order
    position = torch.cat([model.pos_embed[:, :1].expand(-1, 1 + tokens.shape[1], -1), model.pos_embed[:, 1:]], dim=1)
    out = model.norm(model.blocks(model.norm_pre(sequence + position)))
    expected = out[:, 1:1 + tokens.shape[1]].mean(dim=1)
    torch.testing.assert_close(at_class.net.features(images), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain.net.features(images), expected, atol=1e-3)


def test_a_vit_without_position_of_its_class_token_is_a_user_error():
    with pytest.raises(UserError, match="prompt_position"):
        make_learner(make_config(model_name="l2p", prompt_position="class"), StubData([2]), micro_backbone(no_embed_class=True))


@pytest.mark.parametrize(("clip", "norm"), [(1.0, 1.0), (0.25, 0.25), (0.0, 5.0)])
def test_the_gradients_norm_is_clipped_to_what_is_set(clip, norm):
    learner = l2p(prompt_clip=clip)
    learner.begin_task(0)
    module, _ = learner.fabric.setup(learner.training_module(0), learner.make_optimizer(0))
    trained = [p for group in learner.optimizer.param_groups for p in group["params"]]
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    size = sum(p.numel() for p in trained) ** 0.5
    for parameter in trained:
        parameter.grad *= 5.0 / size
    learner.after_backward(module)
    assert torch.cat([p.grad.flatten() for p in trained]).norm().item() == pytest.approx(norm, rel=1e-4)


def test_heads_start_at_zero_where_it_is_asked_for():
    learner = l2p(prompt_head_init="zero")
    learner.begin_task(0)
    assert not learner.net.heads[0].weight.any() and not learner.net.heads[0].bias.any()
    default = l2p()
    default.begin_task(0)
    assert 0.01 < default.net.heads[0].weight.std() < 0.03
