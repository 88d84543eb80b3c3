"""Small pictures of images."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from utils.images.thumbnail import SIDE, thumbnail


@pytest.mark.parametrize(("shape", "size", "kind"), [((1, 28, 28), (28, 28), "png"), ((3, 64, 64), (64, 64), "png"),
                                                     ((3, 100, 200), (64, 32), "jpeg")])
def test_a_small_image_is_kept_and_a_large_one_made_small(shape, size, kind):
    image = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    head, _, data = thumbnail(image).partition(",")
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert head == f"data:image/{kind};base64" and picture.size == size and max(size) <= SIDE
    if kind == "png":
        assert np.array_equal(np.array(picture), image.permute(1, 2, 0).squeeze(-1).numpy())
