"""The transforms of the authors' release by name: one row per data set's recipe."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from utils.images.resample import Interpolation

BRIGHTNESS = 63 / 255  # ColorJitter of the release's CIFAR and ImageNet-1000 transforms


@dataclass(frozen=True)
class Recipe:
    """The steps in their order. Sizes are for 224 px and scale with the data set's image size (300 at 224 is 150 at 112)."""

    resize: Literal["none", "shorter", "both"] = "none"  # shorter: keep the aspect ratio; both: (resize_to, resize_to)
    resize_to: int = 224
    crop: Literal["none", "center", "random", "random_resized"] = "none"
    padding: int = 0  # black pixels on each side before a random crop
    flip: bool = False
    brightness: float = 0.0
    interpolation: Interpolation = "bicubic"

    @property
    def random(self) -> bool:
        return self.crop in ("random", "random_resized") or self.flip or self.brightness > 0


_CROP32 = Recipe(crop="random", padding=4, flip=True)
_CROP224 = Recipe(crop="random_resized", flip=True)
_TEST224 = Recipe(resize="shorter", resize_to=256, crop="center")
_WHOLE224 = Recipe(resize="both")
RECIPES: dict[str, Recipe] = {
    "none": Recipe(),
    "crop32": _CROP32,
    "crop32_jitter": replace(_CROP32, brightness=BRIGHTNESS),
    "crop224": _CROP224,
    "crop224_jitter": replace(_CROP224, brightness=BRIGHTNESS),
    "crop224_bilinear": replace(_CROP224, interpolation="bilinear"),
    "crop224_bilinear_jitter": replace(_CROP224, interpolation="bilinear", brightness=BRIGHTNESS),
    "resize300_crop224": Recipe(resize="both", resize_to=300, crop="random", flip=True),
    "resize224": _WHOLE224,
    "resize224_bilinear": replace(_WHOLE224, interpolation="bilinear"),
    "resize256_crop224": _TEST224,
    "resize256_crop224_bilinear": replace(_TEST224, interpolation="bilinear"),
}
