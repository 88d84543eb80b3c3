"""Figures 2, 3, 6 and 9: training steps beside a bare loop, beside W + s B A, in bf16 beside float32, with `compile` on.

    python benchmarks/stage1.py [--rounds 5] [--batch 4]
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from common import bf16_instructions, in_turns, save, short
from textbook import FormedLoRA
from torch import nn
from torch.nn import functional as F

from convs.lora import add_lora
from models import resolve_config, stage1
from models.tools.build import make_learner
from utils.config import Config, load_config, parse_config
from utils.machine.device import make_fabric

VIT_B = "vit_base_patch16_224"
COMPILERS = ("g++", "clang++", "c++")
PRECISIONS = ("32-true", "bf16-mixed")


def bare_loop(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, steps: int, lr: float = 1e-4) -> Callable[[], None]:
    """A call that does `steps` times forward, backward, step on one fixed batch, nothing else; SGD is fused, as the project's."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=5e-4, fused=True)

    def run() -> None:
        for _ in range(steps):
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return run


def project_epoch(settings: Any) -> tuple[Any, int]:
    """A call that runs one epoch of the project's stage 1 on task 0, augmentation included, and its number of images."""
    config = resolve_config(settings)
    fabric = make_fabric(config.device, config.precision)
    learner = make_learner(config, config.seeds[0], fabric)
    learner.begin_task(0)
    optimizer = learner.make_optimizer(0)
    module, optimizer = fabric.setup(learner.training_module(0), optimizer)
    learner.net.train()
    return lambda: stage1.train_epoch(learner, module, optimizer, learner.training_batches(0, 0)), learner.data.count("train", 0)


def throughput(rounds: int, batch: int) -> dict:
    """Figure 2: images per second of the project over those of the bare loop: the demo's ViT and ViT-B/16 at 224 px."""
    found = {}
    torch.manual_seed(0)
    demo = load_config(Path("exps/slca_demo.json"))
    small = timm.create_model(demo.convnet_type.timm, num_classes=2, **demo.convnet_type.args)
    found["demo ViT, batch 32"] = _throughput(demo, small, (1, 28, 28), 32, 2, rounds)
    vit_b = timm.create_model(VIT_B, num_classes=2)
    found[f"ViT-B/16 at 224 px, batch {batch}"] = _throughput(vit_b_config(batch), vit_b, (3, 224, 224), batch, 2, rounds)
    return found


def vit_b_config(batch: int, **settings: Any) -> Config:
    """ViT-B/16 on as many images as it can do in seconds; crop, flip and normalisation from arrays of 256 px in memory."""
    dataset = {"name": "synthetic-224", "layout": "synthetic", "num_classes": 4, "train_per_class": 2 * batch, "image_size": 224,
               "train_transform": "crop224"}
    return parse_config({"model_name": "slca", "convnet_type": "timm/" + VIT_B, "pretrained": False, "epochs": 1, "batch_size": batch,
                         "device": "cpu", "init_cls": 2, "increment": 2, "num_workers": 0, "dataset": dataset, **settings})


def _throughput(config: Any, model: nn.Module, shape: tuple[int, ...], batch: int, classes: int, rounds: int) -> dict:
    epoch, count = project_epoch(config)
    images, labels = torch.randn(batch, *shape), torch.randint(classes, (batch,))
    steps = max(1, count // batch)
    comparison = in_turns({"bare loop": bare_loop(model, images, labels, steps), "project": epoch}, rounds + 1)
    comparison = comparison.without_first()
    ratio = comparison.ratio("bare loop", "project")
    scale = count / (steps * batch)  # the project's epoch may end with a smaller batch
    return {"seconds": comparison.medians(), "images": {"bare loop": steps * batch, "project": count},
            "of_bare_loop": {key: value * scale if key != "rounds" else value for key, value in ratio.items()}}


def lora_step(rounds: int, batch: int) -> dict:
    """Figure 3: one SLCA++ training step of ViT-B/16, as the project does it and with W + s B A formed."""
    torch.manual_seed(0)
    found = {}
    for name, targets in (("qkv", ("qkv",)), ("qkv, fc1, fc2", ("qkv", "fc1", "fc2"))):
        ours, formed = (timm.create_model(VIT_B, num_classes=10) for _ in range(2))
        add_lora(ours, 4, 0.8, targets)
        for block in formed.blocks:
            block.attn.qkv = FormedLoRA(block.attn.qkv)
            if len(targets) > 1:
                block.mlp.fc1, block.mlp.fc2 = FormedLoRA(block.mlp.fc1), FormedLoRA(block.mlp.fc2)
        for model in (ours, formed):
            for parameter, value in model.named_parameters():
                value.requires_grad_(any(word in parameter for word in ("lora_", "norm", "bias", "cls_token", "head")))
        images, labels = torch.randn(batch, 3, 224, 224), torch.randint(10, (batch,))
        ways = {"W + s B A": bare_loop(formed, images, labels, 2), "project": bare_loop(ours, images, labels, 2)}
        comparison = in_turns(ways, rounds + 1).without_first()
        found[name] = {"batch": batch, "seconds": comparison.medians(), "speedup": comparison.ratio("W + s B A", "project")}
    return found


def bf16(rounds: int, batch: int) -> dict:
    """Figure 6: an epoch of stage 1 in bf16-mixed against 32-true; accuracy is in whole_run.py."""
    networks = {"demo ViT, batch 32": lambda precision: load_config(Path("exps/slca_demo.json"), {"precision": precision}),
                f"ViT-B/16 at 224 px, batch {batch}": lambda precision: vit_b_config(batch, precision=precision)}
    rows = {}
    for name, config in networks.items():
        comparison = in_turns({precision: project_epoch(config(precision))[0] for precision in PRECISIONS}, rounds + 1).without_first()
        rows[name] = {"seconds": comparison.medians(), "speedup": comparison.ratio(*PRECISIONS)}
    return {"cpu_has_bf16": bf16_instructions(), "networks": rows}


def switches(rounds: int) -> dict:
    """Figure 9: an epoch of stage 1 with a switch on, beside the same with it off; what it costs at the start.

    `compile` on the demo's ViT, `channels_last` on a ResNet-50 at 64 px.
    """
    demo = load_config(Path("exps/slca_demo.json"))
    resnet = parse_config({"model_name": "slca", "convnet_type": "timm/resnet50", "pretrained": False, "epochs": 1, "batch_size": 16,
                           "device": "cpu", "init_cls": 2, "increment": 2, "num_workers": 0,
                           "dataset": {"name": "synthetic-64", "layout": "synthetic", "num_classes": 4, "train_per_class": 32,
                                       "image_size": 64}})
    found = {}
    for title, config, switch in (("demo ViT, `compile`", demo, "compile"), ("ResNet-50, `channels_last`", resnet, "channels_last")):
        if switch == "compile" and not any(map(shutil.which, COMPILERS)):
            print(f"{title}: left out, torch.compile needs a C++ compiler")
            continue
        off, on = (project_epoch(config.model_copy(update={switch: value}))[0] for value in (False, True))
        comparison = in_turns({"off": off, "on": on}, rounds + 1)
        start = comparison.seconds["on"][0]
        comparison = comparison.without_first()
        medians = comparison.medians()
        found[title] = {"seconds": medians, "speedup": comparison.ratio("off", "on"), "first_epoch_more": start - medians["on"]["wall"]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4, help="images per step of ViT-B/16")
    arguments = parser.parse_args()
    if bf16_instructions():
        found = bf16(arguments.rounds, arguments.batch)
        save("6_bf16", found)
        for name, row in found["networks"].items():
            print(f"bf16-mixed against 32-true, {name}: {short(row['speedup'])}")
    else:
        print("bf16-mixed against 32-true: left out, this processor has no bfloat16 instructions")
    found = throughput(arguments.rounds, arguments.batch)
    save("2_stage1", found)
    for name, row in found.items():
        print(f"stage 1, {name}: {short(row['of_bare_loop'])} of the bare loop")
    found = lora_step(arguments.rounds, arguments.batch)
    save("3_lora", found)
    for name, row in found.items():
        print(f"LoRA step on {name}: {short(row['speedup'])} faster than W + s B A")
    found = switches(arguments.rounds)
    save("9_switches", found)
    for name, row in found.items():
        print(f"{name}: {short(row['speedup'])} faster, {row['first_epoch_more']:.0f} s more in the first epoch")


if __name__ == "__main__":
    main()
