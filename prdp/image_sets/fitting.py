"""Bringing pictures to the size of a model: scaled until they cover it, then cut around the middle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from prdp.types import UInt8

if TYPE_CHECKING:
    from PIL.Image import Image


def fitted(image: Image, size: tuple[int, int]) -> UInt8:
    """A picture as uint8 [H, W, 3] of a size (H, W).

    It is turned as its EXIF orientation says, transparent parts become white, it is scaled by Lanczos' filter until
    both sides are at least those of the size and one is equal, and the other is cut alike at both ends. A picture of
    that size is left as it is.
    """
    from PIL import Image as images
    from PIL import ImageOps

    turned = ImageOps.exif_transpose(image)
    if turned.has_transparency_data:
        seen = turned.convert("RGBA")
        turned = images.alpha_composite(images.new("RGBA", seen.size, "white"), seen)
    plain = turned.convert("RGB")
    height, width = size
    if plain.size != (width, height):
        plain = ImageOps.fit(plain, (width, height), images.Resampling.LANCZOS)
    return np.asarray(plain)


def all_fitted(images: UInt8, size: tuple[int, int]) -> UInt8:
    """Pictures uint8 [n, H, W, 3] at another size; see `fitted`."""
    from PIL import Image

    if images.shape[1:3] == size:
        return images
    return np.stack([fitted(Image.fromarray(image), size) for image in images])
