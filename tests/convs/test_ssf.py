"""SSF against the same changes folded into the layers' weights."""

import torch
from torch import nn

from convs.ssf import ScaleShift, put_ssf
from tests.support import micro_backbone

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def test_scaling_and_shifting_equals_weights_changed_that_way():
    backbone, folded = micro_backbone().eval(), micro_backbone().eval()
    put_ssf(backbone.model, torch.Generator().manual_seed(0))
    modules = dict(folded.model.named_modules())
    for path, layer in backbone.model.named_modules():
        if isinstance(getattr(layer, "ssf", None), ScaleShift):
            twin, scale, shift = modules[path], layer.ssf.scale.data, layer.ssf.shift.data
            twin = getattr(twin, "proj", twin) if path == "patch_embed" else twin
            twin.weight.data *= scale.view(-1, *[1] * (twin.weight.dim() - 1))
            twin.bias.data = scale * twin.bias.data + shift
    torch.testing.assert_close(backbone(IMAGES), folded(IMAGES), atol=1e-5, rtol=1e-5)


def test_every_linear_layer_every_norm_and_the_embedding_get_one():
    model = micro_backbone().model
    put_ssf(model)
    paths = {path for path, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.LayerNorm)} | {"patch_embed"}
    assert {path for path, layer in model.named_modules() if hasattr(layer, "ssf")} == paths


def test_it_begins_near_the_identity():
    model = micro_backbone(embed_dim=512).model
    put_ssf(model, torch.Generator().manual_seed(0))
    for values, mean in ((torch.cat([p for name, p in model.named_parameters() if name.endswith(f"ssf.{kind}")]), mean)
                         for kind, mean in (("scale", 1.0), ("shift", 0.0))):
        assert abs(values.mean().item() - mean) < 1e-3 and abs(values.std().item() - 0.02) < 1e-3


def test_a_small_scale_is_not_rounded_away_in_bfloat16():
    model = micro_backbone().model
    put_ssf(model)
    part = model.blocks[0].norm1.ssf
    part.scale.data.fill_(1.003)  # bfloat16's neighbours of 1 are 0.996 and 1.008
    part.shift.data.fill_(-1.0)
    output = part.after(model.blocks[0].norm1, (), torch.ones(1, 1, 16, dtype=torch.bfloat16))
    torch.testing.assert_close(output.float(), torch.full((1, 1, 16), 0.003), rtol=0.01, atol=0)
