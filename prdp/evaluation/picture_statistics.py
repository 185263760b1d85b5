"""How bright, contrasted, colourful and detailed pictures are: what a policy changes when it exploits its reward."""

from __future__ import annotations

import numpy as np

from prdp.tracking.base import LEAST_SIDE
from prdp.types import Float64, UInt8

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""ITU-R BT.601."""


def picture_statistics(images: UInt8) -> dict[str, Float64]:
    """Statistics of each picture, by name.

    `brightness` and `contrast` are the mean and the standard deviation of luma in [0, 1], `saturation` the mean of
    HSV's, `colorfulness` that of Hasler and Suesstrunk (Measuring colourfulness in natural images, 2003) over 255, and
    `detail` the mean absolute difference of the luma of neighbours.

    Args:
        images: uint8 [n, H, W, 3].

    Returns:
        float64 [n] for each name; nothing for pictures with a side below 8, which encode points.
    """
    if min(images.shape[1:3]) < LEAST_SIDE:
        return {}
    rows = [_statistics(image.astype(np.float32) / 255) for image in images]
    return {name: np.array([row[name] for row in rows], np.float64) for name in rows[0]} if rows else {}


def _statistics(picture: np.ndarray) -> dict[str, float]:
    luma = picture @ _LUMA
    largest = picture.max(-1)
    chroma = largest - picture.min(-1)
    red, green, blue = np.moveaxis(picture, -1, 0)
    first, second = red - green, (red + green) / 2 - blue
    spread, shift = np.hypot(first.std(), second.std()), np.hypot(first.mean(), second.mean())
    return {
        "brightness": float(luma.mean()),
        "contrast": float(luma.std()),
        "saturation": float(np.divide(chroma, largest, out=np.zeros_like(chroma), where=largest > 0).mean()),
        "colorfulness": float(spread + 0.3 * shift),
        "detail": float((np.abs(np.diff(luma, axis=0)).mean() + np.abs(np.diff(luma, axis=1)).mean()) / 2),
    }
