"""The size of images in pixels and that of their latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prdp.support.errors import StartError

KEYS = ("model.height", "model.width")


def vae_factor(vae: Mapping[str, Any]) -> int:
    """Pixels of an image along a side for each of its latents, of a VAE's configuration."""
    return int(2 ** (len(vae["block_out_channels"]) - 1))


def picture_size(latent_shape: tuple[int, ...], vae: Mapping[str, Any]) -> tuple[int, int]:
    """(H, W) in pixels of the images that a VAE makes of latents [C, h, w]."""
    factor = vae_factor(vae)
    return latent_shape[1] * factor, latent_shape[2] * factor


def check_side(key: str, pixels: int, unit: int, most: int | None = None) -> None:
    """Refuse a side that no whole number of latents, or no network, is there for.

    Args:
        key: of `KEYS`.
        pixels: of the side.
        unit: pixels that a side must be a multiple of.
        most: pixels of the largest side.

    Raises:
        StartError: names the nearest sides that fit.
    """
    if pixels > 0 and pixels % unit == 0 and (most is None or pixels <= most):
        return
    below = max(pixels // unit, 1) * unit
    near = dict.fromkeys(side if most is None else min(side, most) for side in (below, below + unit))
    limit = "" if most is None else f" and at most {most}"
    raise StartError(
        f"{key}={pixels}: must be a multiple of {unit} pixels{limit}, such as {' or '.join(map(str, near))}"
    )
