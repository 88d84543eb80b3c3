"""Small pictures of images, for pages."""

from __future__ import annotations

import base64
import io

from PIL import Image
from torch import Tensor

SIDE = 64  # pixels, the longest


def thumbnail(image: Tensor) -> str:
    """An image (C, H, W) uint8 as a data URI of at most SIDE pixels: PNG where it is that small already, else JPEG."""
    array = image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    small = max(picture.size) <= SIDE
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, "PNG" if small else "JPEG", optimize=True)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(file.getvalue()).decode()}"
