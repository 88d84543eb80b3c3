"""Visual prompts against the blocks run one by one with tokens put in by hand."""

import pytest
import torch

from convs.vpt import put_vpt
from tests.support import micro_backbone

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("deep", [True, False])
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_tokens_enter_before_the_image_s_and_leave_before_the_feature_is_read(deep, pool):
    plain, backbone = (micro_backbone(global_pool=pool).eval() for _ in range(2))
    put_vpt(backbone.model, deep=deep, tokens=4)
    prompts = [p for name, p in backbone.model.named_parameters() if name.endswith("prompt.tokens")]
    for number, prompt in enumerate(prompts):
        prompt.data.normal_(generator=torch.Generator().manual_seed(number))
    model = plain.model
    x = model._pos_embed(model.patch_embed(IMAGES))
    for number, block in enumerate(model.blocks):
        if number < len(prompts):  # before the image's tokens here, behind them in the module: attention sees no order
            x = torch.cat([prompts[number].expand(3, -1, -1), x], dim=1)
        x = block(x)
        if deep:
            x = x[:, 4:]
    x = x if deep else x[:, 4:]
    torch.testing.assert_close(backbone(IMAGES), model.forward_head(model.norm(x), pre_logits=True))


def test_prompts_are_counted_per_block_and_begin_at_zero():
    shallow, deep = micro_backbone().model, micro_backbone().model
    put_vpt(shallow, deep=False)
    put_vpt(deep, deep=True)
    for model, blocks in ((shallow, 1), (deep, 2)):
        prompts = [p for name, p in model.named_parameters() if "prompt" in name]
        assert [tuple(p.shape) for p in prompts] == [(5, 16)] * blocks and not any(p.any() for p in prompts)
