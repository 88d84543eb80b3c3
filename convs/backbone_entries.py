"""What is known of a backbone without building it, and where its weights are.

The release's four names are registered here with their files; every other timm model works as "timm/<name>" or with arguments and a
local file of weights.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import PROJECT

WEIGHT_FOLDERS = (Path("."), Path("pretrained"), PROJECT, PROJECT / "pretrained")
LONGEST_SHOWN = 200  # characters of a path in a message
WEIGHT_SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".pth.tar", ".bin")


@dataclass(frozen=True)
class BackboneEntry:
    """What is known of a backbone without building it."""

    timm_name: str
    args: dict[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()  # looked for in pretrained/, first one found wins
    keys: Mapping[str, str] = field(default_factory=dict)  # file -> which of several sets of weights in it (`load_weights`)
    named: bool = False  # the user named the file, so nothing else will do
    reset_norm: bool = False
    downloadable: bool = True  # timm knows where these weights are
    source: str = ""
    shape: tuple[int, int] | None = None  # dimensions of the features and pixels a side, where known without building it


_AUGREG = BackboneEntry(
    "vit_base_patch16_224.augreg_in21k",
    files=("B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz", "vit_base_patch16_224.augreg_in21k.safetensors"),
    reset_norm=True, source="ImageNet-21K, supervised, AugReg; timm downloads it (410 MB)", shape=(768, 224))
_MOCO_V3 = BackboneEntry(
    "vit_base_patch16_224", files=("mocov3-vit-base-300ep.pth", "vit-b-300ep.pth.tar"), reset_norm=True, downloadable=False,
    keys={"vit-b-300ep.pth.tar": "base_encoder"},  # the official file has the momentum encoder too
    source="MoCo v3, 300 epochs on ImageNet-1K; facebookresearch/moco-v3 lists vit-b-300ep.pth.tar", shape=(768, 224))
REGISTRY: dict[str, BackboneEntry] = {
    "vit-b-p16": _AUGREG,
    "vit-b-p16-mocov3": _MOCO_V3,
    "vit-b-p16-lora": _AUGREG,
    "vit-b-p16-lora-mocov3": _MOCO_V3,
}


def register_backbone(name: str, entry: BackboneEntry) -> None:
    """Add a name for `convnet_type`, for a plugin. Raises UserError when it is taken."""
    if name in REGISTRY:
        raise UserError(f"backbone {name!r} exists already; choose another name (python main.py list backbones shows those taken)")
    REGISTRY[name] = entry


def describe(convnet_type: str, args: dict[str, Any] | None = None, weights: str | None = None, key: str = "") -> BackboneEntry:
    """The entry of a registered name, of "timm/<name>", or of a timm name with arguments and a file.

    Args:
        weights: the file; key: which of several sets of weights in it.

    Raises:
        UserError: no such backbone; the message names near ones.
    """
    if convnet_type in REGISTRY and args is None:
        return REGISTRY[convnet_type]
    import timm  # and torch, which takes seconds and which the registered names do not need

    name = convnet_type.removeprefix("timm/")
    if (convnet_type.startswith("timm/") or args is not None) and timm.is_model(name.split(".")[0]):
        files = tuple(name + suffix for suffix in WEIGHT_SUFFIXES) if weights is None else (weights,)
        if key and weights is None:
            raise UserError(f"weights_key: got {key!r} without a file to look in; name it as \"weights\"")
        return BackboneEntry(name, dict(args or {}), files, {file: key for file in files}, named=weights is not None,
                             downloadable=weights is None and not args, source="timm")
    stem = name.split(".")[0]
    near = sorted(set(timm.list_models(f"*{stem}*")))[:5] or timm.list_models("vit_base*")[:5]
    raise UserError(f"convnet_type: got {convnet_type!r}, allowed: {', '.join(REGISTRY)}, 'timm/<name>' or "
                    f'{{"timm": name, "args": {{...}}, "weights": file}}; timm has for example {", ".join(near)}')


def list_backbones() -> str:
    """One line per registered backbone: name, dimension, timm's name, and whether its file is in pretrained/."""
    lines = []
    for name, entry in REGISTRY.items():
        dim, pixels = entry.shape or _shape_as_built(entry)
        file = find_weights(entry)
        where = f"pretrained/{file.name} is there" if file else (
            "not in pretrained/; timm downloads it" if entry.downloadable else f"put {' or '.join(entry.files)} into pretrained/")
        lines.append(f"{name:24} {dim} dims, {pixels} px  {entry.timm_name}  {entry.source}  ({where})")
    return "\n".join([*lines, "timm/<name>              any model of timm, weights from pretrained/<name>.* or timm's download",
                      '{"timm": ..., "args": {...}, "weights": file}   your own'])


def _shape_as_built(entry: BackboneEntry) -> tuple[int, int]:
    """Of a plugin's entry that does not say it."""
    from convs.backbones import build_backbone

    backbone = build_backbone(entry, device="meta")
    return backbone.dim, backbone.image_size


def find_weights(entry: BackboneEntry, folders: Sequence[Path] = WEIGHT_FOLDERS) -> Path | None:
    """The first of the entry's files that exists in one of `folders`; "~" is the home folder."""
    return next((path for path in _places(entry, folders) if _is_file(path)), None)


def _places(entry: BackboneEntry, folders: Sequence[Path] = WEIGHT_FOLDERS) -> list[Path]:
    return [folder / os.path.expanduser(name) for name in entry.files for folder in folders]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long for the system, or one that it does not allow
        return False


def key_in(entry: BackboneEntry, file: Path) -> str:
    """Which set of weights in `file` the entry wants, "" where it does not say."""
    return next((key for name, key in entry.keys.items() if Path(name).name == file.name), "")


def where_to_put(entry: BackboneEntry) -> str:
    if entry.named:
        return _not_there(entry)
    return (f"the weights of the backbone are not there: put {' or '.join(entry.files[:2]) or 'a file'} into pretrained/ "
            f"({entry.source}; see pretrained/README.md), or set pretrained to false for random weights")


def _not_there(entry: BackboneEntry) -> str:
    """Why a file that the user named cannot be had, and where it was looked for."""
    name = entry.files[0]
    tried = list(dict.fromkeys(str(path.absolute()) for path in _places(entry)))
    folder = next((path for path in tried if os.path.isdir(path)), None)
    if folder is not None and name:
        inside = sorted(path.name for path in Path(folder).iterdir() if path.is_file())[:5]
        return f"weights: {folder} is a folder; name the file in it{', for example ' + ', '.join(inside) if inside else ''}"
    shown = name if len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}... ({len(name)} characters)"
    where = f"; looked for {', '.join(tried)}" if len(name) <= LONGEST_SHOWN else ""
    return f"weights: got {shown!r}, which is no file{where}. Name one that is there, or set pretrained to false for random weights"
