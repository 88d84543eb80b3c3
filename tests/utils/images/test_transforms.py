"""utils/images/transforms.py against torchvision on PIL images, as the authors' release runs it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as pil_transforms
from torchvision.transforms import InterpolationMode

from utils.errors import UserError
from utils.images.transforms import DRAWS, RECIPES, crop_boxes, make_transform

GREY_LEVEL = 1 / 255
MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def some_images(count: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    """(count, height, width, channels) uint8: a smooth ramp with hard edges and noise."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 255, height * width).reshape(1, height, width, 1)
    edges = 120 * (rng.random((count, height // 4 + 1, width // 4 + 1, channels)) > 0.5).repeat(4, 1).repeat(4, 2)[:, :height, :width]
    return ((ramp + edges + rng.normal(0, 20, (count, height, width, channels))) % 256).astype(np.uint8)


def as_batch(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def uniforms(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, DRAWS, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(32, 32), (40, 24), (300, 260)])
@pytest.mark.parametrize("name, mode", [("resize256_crop224", "BICUBIC"), ("resize256_crop224_bilinear", "BILINEAR")])
def test_test_transform_equals_the_releases_within_two_grey_levels(shape, name, mode):
    images = some_images(3, *shape)
    reference = pil_transforms.Compose([pil_transforms.Resize(256, interpolation=InterpolationMode[mode]),
                                        pil_transforms.CenterCrop(224), pil_transforms.ToTensor()])
    expected = torch.stack([reference(Image.fromarray(image)) for image in images])
    transform = make_transform(name, 224, MEAN, STD)
    none = torch.empty(3, 0)
    assert (transform(as_batch(images), none) - expected).abs().max() < 1.6 * GREY_LEVEL
    assert (transform(list(as_batch(images)), none) - expected).abs().max() < 1.6 * GREY_LEVEL


@pytest.mark.parametrize("shape", [(32, 32), (40, 24), (200, 180)])
@pytest.mark.parametrize("name, mode", [("resize224", "BICUBIC"), ("resize224_bilinear", "BILINEAR")])
def test_a_resize_without_a_crop_is_pillows_of_the_whole_image(shape, name, mode):
    images = some_images(3, *shape)
    whole = [Image.fromarray(image).resize((224, 224), Image.Resampling[mode]) for image in images]
    expected = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in whole])
    transform = make_transform(name, 224, MEAN, STD)
    assert (transform(as_batch(images), torch.empty(3, 0)) - expected).abs().max() < 1.6 * GREY_LEVEL


def test_random_resized_crop_of_one_box_equals_pillows_within_two_grey_levels():
    images = some_images(16, 32, 32)
    u = uniforms(16)
    boxes = crop_boxes(u, torch.full((16,), 32), torch.full((16,), 32))
    out = make_transform("crop224", 224, MEAN, STD)(as_batch(images), u)
    for i, (top, left, height, width) in enumerate(zip(*(b.tolist() for b in boxes), strict=True)):
        box = Image.fromarray(images[i]).crop((left, top, left + width, top + height))
        expected = torch.from_numpy(np.array(box.resize((224, 224), Image.Resampling.BICUBIC))).permute(2, 0, 1) / 255
        expected = expected.flip(2) if u[i, 0] < 0.5 else expected
        assert (out[i] - expected).abs().max() < 1.6 * GREY_LEVEL


def test_small_images_in_one_pass_equal_images_one_at_a_time():
    images, u = as_batch(some_images(8, 32, 32)), uniforms(8)
    for name in ("crop224_jitter", "crop224_bilinear_jitter", "resize256_crop224"):
        transform = make_transform(name, 224, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
        difference = (transform(images, u) - transform(list(images), u)).abs().max()
        assert difference < 1.7 * GREY_LEVEL / 0.2, name


def test_crop_boxes_have_torchvisions_distribution():
    n, height, width = 1500, 200, 300
    top, left, h, w = crop_boxes(uniforms(n), torch.full((n,), height), torch.full((n,), width))
    torch.manual_seed(0)
    reference = torch.tensor([pil_transforms.RandomResizedCrop.get_params(torch.empty(1, height, width), (0.08, 1.0), (3 / 4, 4 / 3))
                              for _ in range(n)]).double()
    ours = torch.stack([top, left, h, w], 1).double()
    standard_error = reference.std(0) / n**0.5
    assert ((ours.mean(0) - reference.mean(0)).abs() < 5 * standard_error).all()
    assert (ours.std(0) / reference.std(0) - 1).abs().max() < 0.1
    assert (top >= 0).all() and (top + h <= height).all() and (left >= 0).all() and (left + w <= width).all()


@pytest.mark.parametrize("height, width", [(10, 400), (400, 10), (1, 1)])
def test_a_box_that_never_fits_becomes_the_largest_central_one(height, width):
    u = torch.full((1, DRAWS), 0.999)
    ours = [int(v) for v in crop_boxes(u, torch.tensor([height]), torch.tensor([width]))]
    torch.manual_seed(0)
    if max(height, width) > 1:
        expected = pil_transforms.RandomResizedCrop.get_params(torch.empty(3, height, width), (0.999, 1.0), (3 / 4, 4 / 3))
        assert ours == [int(v) for v in expected]
    else:
        assert ours == [0, 0, 1, 1]


def test_crop32_takes_every_window_of_the_padded_image_and_flips_half():
    image = torch.arange(1, 17, dtype=torch.uint8).reshape(1, 1, 4, 4).repeat(2000, 1, 1, 1)
    transform = make_transform("crop32", 4, (0.0,), (1.0,))
    out = (transform(image, uniforms(2000)) * 255).round().to(torch.uint8)
    padded = torch.nn.functional.pad(image[0, 0], [4] * 4)
    windows = {tuple(padded[i:i + 4, j:j + 4].flatten().tolist()) for i in range(9) for j in range(9)}
    windows |= {tuple(torch.tensor(w).reshape(4, 4).flip(1).flatten().tolist()) for w in windows}
    seen = {tuple(o.flatten().tolist()) for o in out}
    assert seen == windows


def test_brightness_multiplies_by_at_most_63_of_255_and_clips_at_white():
    white, grey = torch.full((500, 3, 8, 8), 255, dtype=torch.uint8), torch.full((500, 3, 8, 8), 100, dtype=torch.uint8)
    transform = make_transform("crop32_jitter", 8, MEAN, STD)
    u = uniforms(500)
    u[:, 2:4] = 0.5  # the crop in the middle: no black border
    assert transform(white, u).max() == 1.0
    factor = transform(grey, u)[:, 0, 0, 0] * 255 / 100
    assert factor.min() >= 1 - 63 / 255 - 1e-6 and factor.max() <= 1 + 63 / 255 + 1e-6
    assert factor.min() < 0.8 and factor.max() > 1.2


def test_an_image_is_augmented_the_same_alone_and_in_a_batch():
    images, u = as_batch(some_images(6, 48, 48)), uniforms(6)
    for name in RECIPES:
        transform = make_transform(name, 32, MEAN, STD)
        whole = transform(images, u)
        assert torch.allclose(whole[2:4], transform(images[2:4], u[2:4]), atol=1e-6), name
        assert whole.shape == (6, 3, 32, 32) and whole.dtype == torch.float32


def test_resize300_crop224_scales_with_the_image_size():
    cut = make_transform("resize300_crop224", 112, MEAN, STD)
    assert cut._resized_shape(80, 500) == (150, 150)
    assert make_transform("resize256_crop224", 112, MEAN, STD)._resized_shape(100, 200) == (128, 256)


def test_grey_images_are_repeated_and_colour_images_become_luminance():
    grey = as_batch(some_images(2, 8, 8, 1))
    coloured = make_transform("none", 8, MEAN, STD)(grey, torch.empty(2, 0))
    assert coloured.shape == (2, 3, 8, 8) and torch.equal(coloured[:, 0], coloured[:, 2])
    red = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    red[:, 0] = 200
    luminance = make_transform("none", 8, (0.0,), (1.0,))(red, torch.empty(1, 0))
    assert luminance.shape == (1, 1, 8, 8) and abs(luminance.mean() * 255 - 0.299 * 200) < 1


def test_a_list_of_torchvision_transforms_runs_and_repeats_itself():
    steps = [["RandomResizedCrop", {"size": 16, "interpolation": "bicubic"}], "RandomHorizontalFlip", ["ColorJitter", {"hue": 0.1}]]
    transform = make_transform(steps, 16, MEAN, STD)
    images, u = list(as_batch(some_images(3, 40, 30))), uniforms(3)[:, :1]
    state = torch.get_rng_state()
    first = transform(images, u)
    assert first.shape == (3, 3, 16, 16)
    assert torch.equal(first, transform(images, u)) and not torch.equal(first, transform(images, u.flip(0)))
    assert torch.equal(state, torch.get_rng_state()), "the global generator was touched"


@pytest.mark.parametrize("steps, words", [
    ("crop225", ["'crop225'", "crop224", "resize300_crop224"]),
    ([["RandomCropp", {"size": 8}]], ["RandomCropp", "did you mean 'RandomCrop'"]),
    ([["Lambda", {"lambd": "print"}]], ["'Lambda' is not a transform that a config can use"]),
    ([["Normalize", {"mean": [0], "std": [1]}]], ["mean and std are applied after"]),
    ([["RandomCrop", {"sizes": 8}]], ["RandomCrop does not take {'sizes': 8}"]),
    ([["RandomCrop", 8]], ["allowed: [name, {arguments}]"]),
    ([[]], ["allowed: [name, {arguments}]"]),
    ([7], ["allowed: [name, {arguments}]"]),
    ([["Resize", {"size": 8, "interpolation": "cubicle"}]], ["Resize does not take"]),
    ([["__class__", {}]], ["not a transform"]),
])
def test_a_wrong_train_transform_is_one_clear_message(steps, words):
    with pytest.raises(UserError) as error:
        make_transform(steps, 8, MEAN, STD)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_steps_that_end_in_another_size_are_one_clear_message():
    transform = make_transform([["RandomCrop", {"size": 8}]], 16, MEAN, STD)
    with pytest.raises(UserError, match=r"into \(3, 8, 8\), allowed: \(3, 16, 16\)"):
        transform(as_batch(some_images(1, 20, 20)), uniforms(1)[:, :1])
