"""The table of what trains, against counts by hand."""

import torch

from convs.adapters import put_adapters
from convs.backbones import build_backbone, describe
from convs.heads import linear_head
from convs.lora import add_lora
from convs.network import IncrementalNet
from convs.parts import PartCount, added_parameters, describe_parameters, parameter_table
from convs.vpt import put_vpt
from tests.support import micro_backbone


def test_what_trains_and_what_is_frozen_is_counted_part_by_part():
    net = IncrementalNet(micro_backbone(), linear_head)
    net.add_head(3)
    plain = sum(p.numel() for p in net.backbone.parameters())
    put_vpt(net.backbone.model, deep=True)  # 2 blocks, 5 tokens of 16
    adapters = put_adapters(net.backbone.model, 4)  # 16 x 4 + 4 + 4 x 16 + 16 = 148 each
    adapters.add(0)
    adapters.add(1)
    add_lora(net.backbone.model, 2, 1.0, ["qkv", "fc1"])  # 2 (16 + 48) + 2 (16 + 64) = 288 per block
    net.add_head(2)
    net.requires_grad_(False)
    net.heads[1].requires_grad_(True)
    for parameter in adapters.parameters(1):
        parameter.requires_grad_(True)
    for name, parameter in net.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(True)
    assert describe_parameters(net) == [PartCount("backbone", 0, plain, 0), PartCount("adapters", 296, 296, 0),
                                        PartCount("lora", 576, 0, 0), PartCount("prompts", 0, 160, 0), PartCount("heads", 34, 51, 0)]
    table = parameter_table(net)
    assert [line.split() for line in table.splitlines()][3] == ["lora", "576", "0", "0"]
    assert len({len(line) for line in table.splitlines()}) == 1


def test_frozen_numbers_of_parts_are_known_as_not_pretrained():
    model = micro_backbone().model
    own = set(dict(model.named_parameters()))
    add_lora(model, 2, 1.0, ["k", "v", "fc2"])
    model.requires_grad_(False)
    added = added_parameters(model)
    assert added == set(dict(model.named_parameters())) - own and len(added) == 2 * 3 * 2
    assert describe_parameters(torch.nn.Linear(2, 2)) == [PartCount("backbone", 6, 0, 0)]


def test_a_vit_b_with_lora_of_rank_64_trains_as_many_numbers_as_published():
    backbone = build_backbone(describe("timm/vit_base_patch16_224"), pretrained=False, device="meta")
    backbone.requires_grad_(False)
    add_lora(backbone.model, 64, 2.0, ["qkv", "fc1", "fc2"])
    assert round(next(row.trained for row in describe_parameters(backbone) if row.part == "lora") / 1e6, 2) == 8.26
