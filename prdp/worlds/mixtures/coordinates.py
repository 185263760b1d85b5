"""Points of the plane as tiny pictures: 24 bits of fixed point per coordinate, one pixel each."""

from __future__ import annotations

import numpy as np

from prdp.types import Float64, UInt8

LIMIT = 16.0
"""Coordinates lie in [-LIMIT, LIMIT); what is beyond is moved to the edge."""
_LEVELS = 1 << 24
SPACING = 2.0 * LIMIT / _LEVELS


def encode_points(points: Float64) -> UInt8:
    """Pictures uint8 [n, 1, 2, 3] of points [n, 2]: pixel i is coordinate i, red its most significant byte.

    Raises:
        ValueError: a coordinate is not finite.
    """
    if not np.isfinite(points).all():
        raise ValueError("a sampled point is not finite: the policy has diverged")
    levels = np.clip(np.round((np.asarray(points, np.float64) + LIMIT) / SPACING), 0, _LEVELS - 1).astype(np.int64)
    return np.stack([levels >> 16, (levels >> 8) & 255, levels & 255], -1).astype(np.uint8)[:, None]


def decode_points(images: UInt8) -> Float64:
    """Points float64 [n, 2] of pictures uint8 [n, 1, 2, 3], to within SPACING / 2.

    Raises:
        ValueError: pictures of another shape or type.
    """
    if images.dtype != np.uint8 or images.shape[1:] != (1, 2, 3):
        raise ValueError(
            f"images are {images.dtype} {list(images.shape)}, expected uint8 [n, 1, 2, 3] of model=gaussian_mixtures"
        )
    levels = images[:, 0].astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    return np.asarray(levels * SPACING - LIMIT, np.float64)
