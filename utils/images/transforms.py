"""What happens to an image between the decoder and the network: crop, flip, brightness, normalisation.

The recipes are those of the authors' release (torchvision on one PIL image at a time); here they run on whole batches of
uint8 tensors where that gives the same distribution. Random numbers come as a table, one row of uniforms per image, so
they depend neither on the other images of the batch nor on which worker or device makes it. Differences from the release:
values are not rounded to whole grey levels between two steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Union

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import get_worker_info
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from utils.errors import UserError
from utils.images.recipes import RECIPES, Recipe
from utils.images.resample import resize_weights, resized_bytes, whole_weights
from utils.images.torchvision_steps import build_steps

Images = Union[Tensor, "list[Tensor]"]  # (B, C, H, W) uint8 of one size, or B of (C, H, W) uint8 of any size

AREA = (0.08, 1.0)  # RandomResizedCrop's share of the image, torchvision's default
ASPECT = (3 / 4, 4 / 3)  # RandomResizedCrop's width / height, torchvision's default
LOG_ASPECT = torch.tensor(ASPECT).log()  # numbers of float32, so that a CPU and a GPU cut the same boxes
LOWEST, SPAN = LOG_ASPECT[0].item(), (LOG_ASPECT[1] - LOG_ASPECT[0]).item()
ATTEMPTS = 10  # RandomResizedCrop gives up after so many boxes that do not fit
FLIP, LIGHT, TOP, LEFT, BOX = 0, 1, 2, 3, 4  # columns of the table of uniforms; from BOX on (area, aspect) per attempt
DRAWS = BOX + 2 * ATTEMPTS
CPU_STEP = 16  # images resized together on a CPU: their planes fit in its cache
SMALL = 64  # pixels: up to this size a dense product of weights beats one resize per image on a CPU; on a GPU it always does


def crop_boxes(u: Tensor, heights: Tensor, widths: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes of RandomResizedCrop: the first of ten random ones that fits, else the largest central one.

    Args: u (B, DRAWS) uniforms, heights and widths (B,) of the images
    Returns: top, left, height, width, each (B,) int64
    Source: torchvision.transforms.v2.RandomResizedCrop.make_params
    """
    area = (heights * widths)[:, None] * (AREA[0] + (AREA[1] - AREA[0]) * u[:, BOX::2])  # (B, ATTEMPTS)
    aspect = torch.exp(LOWEST + SPAN * u[:, BOX + 1::2])
    w, h = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (w > 0) & (w <= widths[:, None]) & (h > 0) & (h <= heights[:, None])
    first = fits.int().argmax(1, keepdim=True)  # of equal values argmax takes the first
    w, h = w.gather(1, first)[:, 0], h.gather(1, first)[:, 0]

    shape = widths / heights  # an image flatter or taller than any allowed box
    central_w = torch.where(shape > ASPECT[1], (heights * ASPECT[1]).round().long(), widths)
    central_h = torch.where(shape < ASPECT[0], (widths / ASPECT[0]).round().long(), heights)
    none = ~fits.any(1)
    w, h = torch.where(none, central_w, w), torch.where(none, central_h, h)
    top = torch.where(none, (heights - h) // 2, whole_number(u[:, TOP], heights - h))
    left = torch.where(none, (widths - w) // 2, whole_number(u[:, LEFT], widths - w))
    return top, left, h, w


def whole_number(u: Tensor, largest: Tensor | int) -> Tensor:
    """0 to `largest`, all equally likely, int64."""
    numbers = (u * (largest + 1)).long()
    return torch.minimum(numbers, largest) if isinstance(largest, Tensor) else numbers.clamp(max=largest)  # the product may round up


class Transform:
    """One recipe at one image size: uint8 images of any size -> (B, channels, S, S) float32, normalised.

    `cut` does the geometry and stays in uint8; `finish` flips, brightens and normalises. The call does both, for images of
    one size in one pass of matrix products (on a CPU small ones alone). Nothing here makes a GPU wait once it is prepared.
    """

    def __init__(self, recipe: Recipe, image_size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self.recipe = recipe
        self.size = image_size
        self.channels = len(mean)
        self.draws = DRAWS if recipe.random else 0
        self.mean = torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1)
        self.interpolation = InterpolationMode[recipe.interpolation.upper()]
        self._there: dict[torch.device, tuple[Tensor, Tensor]] = {}  # mean and std on every device that was asked for

    def prepare(self, device: torch.device) -> None:
        """Bring to `device` what finishing an image needs there; before the first batch, which else would wait for it."""
        self._there[device] = self.mean.to(device), self.std.to(device)

    def __call__(self, images: Images, u: Tensor) -> Tensor:
        """images -> (B, channels, S, S) float32; u (B, draws) uniforms in [0, 1), one row per image."""
        if isinstance(images, Tensor) and self._resizes(images) and (max(images.shape[2:]) <= SMALL or images.is_cuda):
            return self._resample(as_channels(images, self.channels), u)
        return self.finish(self.cut(images, u), u)

    # Geometry ------------------------------------------------------------------------------------------------

    def cut(self, images: Images, u: Tensor) -> Tensor:
        """Resize and crop: -> (B, channels, S, S) uint8."""
        if isinstance(images, Tensor) and self.recipe.crop != "random_resized":
            return self._cut_batch(as_channels(images, self.channels), u)
        single = [self._cut_batch(as_channels(image[None], self.channels), u[i:i + 1]) for i, image in enumerate(images)]
        return torch.cat(single) if single else torch.empty(0, self.channels, self.size, self.size, dtype=torch.uint8)

    def _cut_batch(self, images: Tensor, u: Tensor) -> Tensor:
        recipe, size = self.recipe, self.size
        if recipe.crop == "random_resized":  # one image: every image has its own box
            height, width = images.shape[2:]
            top, left, h, w = (int(v) for v in crop_boxes(u, torch.tensor([height]), torch.tensor([width])))
            box = images[..., top:top + h, left:left + w]
            return tv.resize(box, [size, size], self.interpolation, antialias=True)
        height, width = self._resized_shape(*images.shape[2:])
        if (height, width) != tuple(images.shape[2:]):
            if images.is_cuda:  # torchvision has Pillow's arithmetic for bytes on the CPU alone
                images = resized_bytes(images, height, width, recipe.interpolation)
            else:
                images = tv.resize(images, [height, width], self.interpolation, antialias=True)
        if recipe.crop == "random":
            return self._random_crop(images, u)
        return tv.center_crop(images, [size, size]) if recipe.crop == "center" else images

    def _random_crop(self, images: Tensor, u: Tensor) -> Tensor:
        """RandomCrop(S, padding): each image's window out of all windows, a view until it is read."""
        images = F.pad(images, [self.recipe.padding] * 4)
        height, width = images.shape[2:]
        if min(height, width) < self.size:  # as torchvision's pad_if_needed: the crop must exist
            images = F.pad(images, [max(0, self.size - width)] * 2 + [max(0, self.size - height)] * 2)
            height, width = images.shape[2:]
        top, left = whole_number(u[:, TOP], height - self.size), whole_number(u[:, LEFT], width - self.size)
        windows = images.unfold(2, self.size, 1).unfold(3, self.size, 1)  # (B, C, tops, lefts, S, S)
        return windows[torch.arange(len(images), device=images.device), :, top, left]

    def _resized_shape(self, height: int, width: int) -> tuple[int, int]:
        """Shape after the first step; without one, images that do not have the wanted size are brought to it."""
        recipe = self.recipe
        if recipe.resize == "none":
            return (height, width) if recipe.crop != "none" else (self.size, self.size)
        to = round(recipe.resize_to * self.size / 224)
        if recipe.resize == "both":
            return to, to
        short, long = min(height, width), max(height, width)
        other = int(to * long / short)
        return (other, to) if height > width else (to, other)

    # Pixels --------------------------------------------------------------------------------------------------

    def finish(self, images: Tensor, u: Tensor) -> Tensor:
        """Flip, brightness, normalise: (B, channels, S, S) uint8 -> float32."""
        if self.recipe.flip:
            images = _flipped(images, u[:, FLIP] < 0.5)
        scale, low, _ = self._affine(u, images.device)
        out = new_batch(images.shape, images.device).copy_(images).mul_(scale).add_(low)
        return out.clamp_(max=self._white(images.device)) if self.recipe.brightness else out

    def _white(self, device: torch.device) -> Tensor:
        mean, std = self._mean_std(device)
        return (1 - mean) / std

    def _mean_std(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(1, channels, 1, 1) each, brought to a device once: a copy of a few numbers makes a GPU wait."""
        if device not in self._there:
            self.prepare(device)
        return self._there[device]

    def _affine(self, u: Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Brightness and normalisation as x * scale + low; white before brightness becomes `high`.

        Each is (1 or B, channels, 1, 1).
        """
        mean, std = self._mean_std(device)
        light: Tensor | float = 1.0
        if self.recipe.brightness:
            light = (1 + self.recipe.brightness * (2 * u[:, LIGHT] - 1)).view(-1, 1, 1, 1)
        return light / (255 * std), -mean / std, (light - mean) / std

    # Both at once --------------------------------------------------------------------------------------------

    def _resizes(self, images: Tensor) -> bool:
        return self.recipe.crop == "random_resized" or (
            self.recipe.crop != "random" and self._resized_shape(*images.shape[2:]) != tuple(images.shape[2:]))

    def _resample(self, images: Tensor, u: Tensor) -> Tensor:
        """cut and finish as two matrix products.

        Brightness and normalisation are affine and every row of weights sums to 1, so they can be done first, on the
        small images. Bicubic overshoots: as Pillow does, clip to black and white after each of the two passes.
        """
        out = new_batch((len(images), self.channels, self.size, self.size), images.device)
        step = CPU_STEP if out.device.type == "cpu" else max(1, len(out))
        for part in (slice(start, start + step) for start in range(0, len(out), step)):
            self._resample_part(images[part], u[part], out[part])
        return out

    def _resample_part(self, images: Tensor, u: Tensor, out: Tensor) -> None:
        """Fill `out` (B, C, S, S) from `images` (B, C, H, W) uint8."""
        rows, columns = self._weights(images.shape[2], images.shape[3], u)  # (B, S, H), (B, S, W)
        scale, low, high = self._affine(u, images.device)
        small = images.to(torch.float32) * scale + low  # (B, C, H, W)
        wide = (small @ columns.transpose(1, 2)[:, None]).clamp_(low, high)  # (B, C, H, S)
        high = torch.minimum(high, self._white(images.device)).expand(len(out), -1, 1, 1)
        if out.device.type != "cpu":
            torch.matmul(rows[:, None], wide, out=out).clamp_(low, high)
            return
        # One plane at a time stays in the processor's cache between the product and the clipping: twice as fast.
        rows, lows, highs = rows.expand(len(out), -1, -1), low.flatten().tolist(), high.flatten(1).tolist()
        for i in range(len(out)):
            for c in range(self.channels):
                torch.mm(rows[i], wide[i, c], out=out[i, c]).clamp_(lows[c], highs[i][c])

    def _weights(self, height: int, width: int, u: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of the rows (1 or B, S, height) and of the columns (1 or B, S, width), flip included."""
        size, kind = self.size, self.recipe.interpolation
        if self.recipe.crop == "random_resized":
            full = torch.ones(len(u), dtype=torch.int64, device=u.device)
            top, left, h, w = crop_boxes(u, full * height, full * width)
            rows = resize_weights(top, h, height, size, 0, size, kind)
            columns = resize_weights(left, w, width, size, 0, size, kind)
        else:
            scaled = self._resized_shape(height, width)
            rows, columns = (whole_weights(n, to, round((to - size) / 2), size, kind, u.device)
                             for n, to in zip((height, width), scaled, strict=True))
        if self.recipe.flip:
            columns = torch.where((u[:, FLIP] < 0.5)[:, None, None], columns.flip(1), columns)
        return rows, columns


def _flipped(images: Tensor, which: Tensor) -> Tensor:
    """(B, C, S, S) with those of `which` (B,) mirrored."""
    if images.is_cuda:  # which would wait to learn how many there are
        return torch.where(which.view(-1, 1, 1, 1), images.flip(3), images)
    positions = which.nonzero()[:, 0]
    return images.index_copy(0, positions, images[positions].flip(3))


def new_batch(shape: Sequence[int], device: torch.device) -> Tensor:
    """An uninitialised float32 batch; a worker process makes it in shared memory, so that handing it over copies nothing."""
    out = torch.empty(tuple(shape), device=device)
    return out.share_memory_() if get_worker_info() is not None else out


def as_channels(images: Tensor, channels: int) -> Tensor:
    """(B, 1 or 3, H, W) uint8 -> (B, channels, H, W): grey is repeated, colour becomes its luminance (ITU-R 601)."""
    if images.shape[1] == channels:
        return images
    return images.expand(-1, channels, -1, -1) if images.shape[1] == 1 else tv.rgb_to_grayscale(images, 1)


def make_transform(steps: str | list[Any], image_size: int, mean: Sequence[float], std: Sequence[float]) -> Transform:
    """The recipe called `steps`, or the user's own list of torchvision transforms.

    Raises:
        UserError: there is no recipe of that name, or the list is not one of transforms.
    """
    if not isinstance(steps, str):
        return CustomTransform(steps, image_size, mean, std)
    if steps not in RECIPES:
        raise UserError(f"train_transform: got {steps!r}, allowed: {', '.join(RECIPES)}, or a list of torchvision v2 "
                        'transforms such as [["RandomResizedCrop", {"size": 224}], ["RandomHorizontalFlip", {}]]')
    return Transform(RECIPES[steps], image_size, mean, std)


class CustomTransform(Transform):
    """A list of torchvision v2 transforms from the config, one image at a time, then the normalisation."""

    def __init__(self, steps: list[Any], image_size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(Recipe(), image_size, mean, std)
        self.steps = build_steps(steps)
        self.draws = 1  # the seed of the image's own random numbers

    def __call__(self, images: Images, u: Tensor) -> Tensor:
        return self.finish(self.cut(images, u), u)

    def cut(self, images: Images, u: Tensor) -> Tensor:
        """-> (B, channels, S, S), uint8 or, after a step that changes the type, float32 in [0, 1]."""
        done = [self._one(as_channels(image[None], self.channels)[0], float(v)) for image, v in zip(images, u[:, 0], strict=True)]
        if not done:
            return torch.empty(0, self.channels, self.size, self.size, dtype=torch.uint8)
        return torch.stack(done)

    def finish(self, images: Tensor, u: Tensor) -> Tensor:
        whole = 255.0 if images.dtype == torch.uint8 else 1.0
        mean, std = self._mean_std(images.device)
        return (images.to(torch.float32) / whole - mean) / std

    def _one(self, image: Tensor, uniform: float) -> Tensor:
        # torchvision's transforms draw from torch's global generator: lend them one that starts from the image's number.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(uniform * 2**24))  # a float32 uniform has 24 bits
            out = self.steps(image.contiguous())
        wanted = (self.channels, self.size, self.size)
        if not isinstance(out, Tensor) or tuple(out.shape) != wanted:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise UserError(f"train_transform: the steps turn an image of {tuple(image.shape)} into {got}, allowed: {wanted} "
                            "(channels, image_size, image_size); end with a crop or a resize to image_size")
        if out.dtype != torch.uint8 and not out.is_floating_point():
            raise UserError(f"train_transform: the steps give pixels of {out.dtype}, allowed: uint8 or float32 in [0, 1]")
        return out
