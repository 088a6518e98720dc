"""Images as they stand inside the page."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray


def png(image: NDArray[np.uint8], largest: int, colors: int | None = None) -> str:
    """Return an image as the address of a png that holds it.

    Args:
        image: uint8 (C, H, W); one channel is gray, of more the first three are shown.
        largest: a larger one is shrunk to this many pixels.
        colors: that are kept of a colored image, for a page with many of them; None keeps all.
    """
    from PIL import Image

    gray = len(image) == 1
    picture = Image.fromarray(image[0] if gray else np.moveaxis(image[:3], 0, -1).copy())
    picture.thumbnail((largest, largest))
    if colors is not None and not gray:
        picture = picture.quantize(colors)

    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
