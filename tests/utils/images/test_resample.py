import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from utils.images.resample import resized_bytes


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(21, 30), (9, 40), (16, 11)])
def test_bytes_are_resized_as_pillow_does(interpolation, size):
    """torchvision has Pillow's arithmetic for bytes on a CPU; noise overshoots, so that clipping between the passes shows."""
    images = torch.randint(0, 256, (4, 3, 16, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = tv.resize(images, list(size), InterpolationMode[interpolation.upper()], antialias=True)
    difference = (resized_bytes(images, *size, interpolation).int() - expected.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.1  # its weights are whole numbers
