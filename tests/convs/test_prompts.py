"""Prompts hooked into timm's ViT: against attention written out by hand, and that the model stays as it was."""

import pytest
import torch
from torch.nn import functional as F

from convs.backbones import build_backbone, describe
from convs.prompts import Prompt, PromptedBackbone, Prompts, check_promptable
from tests.support import StubData, make_config, make_learner, micro_backbone, synthetic_learner
from utils.errors import UserError
from utils.run.monitor import Monitor

METHODS = {
    "l2p": {},
    "dualprompt": {"g_prompt_layers": [0], "prompt_layers": [0, 1]},
    "coda_prompt": {"prompt_layers": [0, 1], "prompt_pool": 8},
}
GENERATOR = torch.Generator().manual_seed(3)
IMAGES = torch.randn(5, 3, 16, 16, generator=GENERATOR)


def prompt_learner(name, **settings):
    generator = torch.Generator().manual_seed(0)
    batches = {t: [(torch.randn(6, 3, 16, 16, generator=generator), torch.tensor([2 * t, 2 * t + 1] * 3))] for t in range(2)}
    return make_learner(make_config(model_name=name, lr=0.01, **METHODS[name], **settings), StubData([2, 2], batches))


def attention_with_prefix(block, x, keys, values):
    """Softmax over the prefix's and the image's own keys, head by head (prefix tuning, DualPrompt Eq. 3)."""
    attention, dim = block.attn, x.shape[2]
    width = dim // attention.num_heads
    q, k, v = F.linear(x, attention.qkv.weight, attention.qkv.bias).split(dim, dim=2)
    k, v = torch.cat([keys, k], dim=1), torch.cat([values, v], dim=1)
    heads = []
    for h in range(attention.num_heads):
        part = slice(h * width, (h + 1) * width)
        weights = (q[:, :, part] @ k[:, :, part].transpose(1, 2) / width**0.5).softmax(dim=2)
        heads.append(weights @ v[:, :, part])
    return F.linear(torch.cat(heads, dim=2), attention.proj.weight, attention.proj.bias)


class HandedPrompts(Prompts):
    """None of its own: tests hand theirs to `prompted`."""

    def forward(self, query: torch.Tensor) -> Prompt:
        return Prompt()

    def for_training(self, query: torch.Tensor) -> tuple[Prompt, torch.Tensor]:
        return Prompt(), query.new_zeros(())


def test_prefixes_act_as_extra_keys_and_values_of_the_attention():
    backbone = PromptedBackbone(micro_backbone(), HandedPrompts()).eval()
    model = backbone.model
    prefix = torch.randn(5, 2, 3, backbone.dim, generator=GENERATOR)
    x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(IMAGES))))
    for number, block in enumerate(model.blocks):
        normed = block.norm1(x)
        x = x + (attention_with_prefix(block, normed, *prefix.unbind(dim=1)) if number == 1 else block.attn(normed))
        x = x + block.mlp(block.norm2(x))
    by_hand = model.norm(x)[:, 0]
    torch.testing.assert_close(backbone.prompted(IMAGES, Prompt(prefixes={1: prefix})), by_hand)


def test_tokens_go_before_the_first_block_and_the_mean_of_their_outputs_is_the_feature():
    backbone = PromptedBackbone(micro_backbone(), HandedPrompts()).eval()
    model, tokens = backbone.model, torch.randn(5, 4, backbone.dim, generator=GENERATOR)
    embedded = model._pos_embed(model.patch_embed(IMAGES))
    by_hand = model.norm(model.blocks(torch.cat([tokens, embedded], dim=1)))[:, :4].mean(dim=1)
    torch.testing.assert_close(backbone.prompted(IMAGES, Prompt(tokens=tokens)), by_hand)


def test_without_prompts_and_after_prompting_the_model_is_timms():
    backbone = PromptedBackbone(micro_backbone(), HandedPrompts()).eval()
    plain = backbone.model(IMAGES)
    backbone.prompted(IMAGES, Prompt(prefixes={0: torch.ones(5, 2, 3, backbone.dim)}, tokens=torch.ones(5, 1, backbone.dim)))
    assert torch.equal(backbone.query(IMAGES), plain)
    assert torch.equal(backbone.prompted(IMAGES, Prompt()), plain)


@pytest.mark.parametrize("name", METHODS)
def test_an_image_gets_the_same_prompt_whatever_batch_it_is_in(name):
    learner = prompt_learner(name)
    for task in range(2):
        learner.learn_task(task, Monitor())
    with torch.no_grad():
        together = learner.net.features(IMAGES)
        alone = torch.cat([learner.net.features(image[None]) for image in IMAGES])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_prompts_and_the_new_head_train_and_the_backbone_stays_bit_equal(name):
    learner = prompt_learner(name)
    model = {key: tensor.clone() for key, tensor in learner.net.backbone.model.state_dict().items()}
    prompts = {key: tensor.clone() for key, tensor in learner.prompts.state_dict().items()}
    learner.learn_task(0, Monitor())
    assert all(torch.equal(model[key], tensor) for key, tensor in learner.net.backbone.model.state_dict().items())
    assert all(not torch.equal(prompts[key], tensor) for key, tensor in learner.prompts.named_parameters())
    assert all(key.startswith(("backbone.prompts.", "heads.", "_extra")) for key in learner.network_state())


@pytest.mark.parametrize("name", METHODS)
def test_a_loaded_prompt_learner_scores_as_the_saved_one_bit_for_bit(name):
    saved, loaded = prompt_learner(name), prompt_learner(name, torch_seed=5)
    for task in range(2):
        saved.learn_task(task, Monitor())
    saved.net.eval()
    loaded.net.eval()
    loaded.load_network_state({key: tensor.clone() for key, tensor in saved.network_state().items()}, 1)
    with torch.no_grad():
        assert torch.equal(saved.net(IMAGES), loaded.net(IMAGES))


def test_blocks_that_are_not_there_and_other_models_are_user_errors():
    with pytest.raises(UserError, match=r"prompt_layers: got \[2, 3, 4\], allowed: blocks 0 to 1"):
        make_learner(make_config(model_name="dualprompt", prompt_layers=[2, 3, 4]), StubData([2, 2]))
    resnet = build_backbone(describe("timm/resnet10t"), pretrained=False)
    with pytest.raises(UserError, match="is no ViT"):
        check_promptable(resnet.model, [0], "prompt_layers")
    micro = micro_backbone()
    micro.model.set_grad_checkpointing()
    with pytest.raises(UserError, match="grad_checkpointing"):
        check_promptable(micro.model, [0], "prompt_layers")


def test_gradients_that_overflowed_are_left_to_the_scaler():
    learner = synthetic_learner("l2p")
    learner.begin_task(0)
    module, _ = learner.fabric.setup(learner.training_module(0), learner.make_optimizer(0))
    for parameter in learner.prompts.parameters():
        parameter.grad = torch.full_like(parameter, torch.inf)
    learner.after_backward(module)
    assert not all(p.grad.isfinite().all() for p in learner.prompts.parameters())
