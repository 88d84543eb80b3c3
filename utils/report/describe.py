"""What a run's network and its protocol are, in words; a custom timm model has a timm name that says nothing about it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

FAMILIES = {"vit": "ViT", "deit": "DeiT", "beit": "BEiT", "eva": "EVA", "swin": "Swin", "resnet": "ResNet", "convnext": "ConvNeXt",
            "VisionTransformer": "ViT"}
SIZES = {"embed_dim": "{} wide", "depth": "{} blocks", "img_size": "{} px"}  # timm's arguments -> words


def backbone_words(config: Mapping[str, Any]) -> str:
    """"vit-b-p16" as a config has it; of a custom timm model "ViT, 128 wide, 5 blocks, 28 px, vit_demo_glyphs weights"."""
    spec = config.get("convnet_type", "")
    if not isinstance(spec, dict):
        return str(spec)
    name, args = str(spec.get("timm", "")), spec.get("args") or {}
    sizes = [words.format(args[key]) for key, words in SIZES.items() if key in args]
    family = FAMILIES.get(name.split("_")[0], name) if sizes else name
    return ", ".join([family, *sizes, *weights_words(config, spec)])


def weights_words(config: Mapping[str, Any], spec: Mapping[str, Any]) -> list[str]:
    """Where a custom model's weights come from: a file's name, or none."""
    if config.get("pretrained") is False:
        return ["random weights"]
    return [f"{Path(str(spec['weights'])).stem} weights"] if spec.get("weights") else []


def protocol_words(config: Mapping[str, Any]) -> str:
    """How the stream differs from plain tasks of new classes: "few-shot, 5 images of each class after the first task"; "" where it
    does not.
    """
    words = [describe(config[key]) for key, describe in PROTOCOL_WORDS.items() if config.get(key)]
    if config.get("scenario") == "domain" and (config.get("domains_per_task") or 1) > 1:
        words.append(f"{config['domains_per_task']} domains mixed in each task")
    return "; ".join(words)


def _few_shot(settings: Mapping[str, Any]) -> str:
    return f"few-shot, {settings['shots']} images of each class after the first task" + (", listed" if settings.get("images") else "")


def _long_tail(settings: Mapping[str, Any]) -> str:
    most = f", at most {settings['most']} images" if settings.get("most") else ""
    return f"long tail, {settings['order']}, ratio {settings['ratio']:g}{most}"


def _blurry(settings: Mapping[str, Any]) -> str:
    kind = "Si-Blurry" if settings["stochastic"] else "blurry"
    return (f"{kind}, one pass, {settings['disjoint']} % disjoint classes, {settings['blurry']} % of the images of the others spread over "
            f"{settings['tasks']} tasks")


PROTOCOL_WORDS = {"few_shot": _few_shot, "long_tail": _long_tail, "blurry": _blurry}
