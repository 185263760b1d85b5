"""JPEG size as a reward, as in DDPO (Black et al., 2023): it needs no weights and shows whether training works."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prdp.rewards.pixels import check_batch
from prdp.types import Float64, UInt8

QUALITY = 95


class Incompressibility:
    """Size in kB (1000 bytes) of each image as JPEG of quality 95; the prompt plays no part."""

    name = "incompressibility"
    # Two encoders may write a few bytes more or less: Pillow's version, and so libjpeg's, is not part of this.
    version = "1"

    def score(self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Float64:
        """Sizes in kB, float64 [B], of uint8 images [B, H, W, 3]."""
        check_batch(images, prompts, metadata)
        return np.array([jpeg_bytes(image) for image in images]) / 1000.0


class Compressibility:
    """The size in kB with a minus sign: plain images score highest; the prompt plays no part."""

    name = "compressibility"
    version = Incompressibility.version

    def score(self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Float64:
        """Minus the sizes in kB, float64 [B], of uint8 images [B, H, W, 3]."""
        return -Incompressibility().score(images, prompts, metadata)


def jpeg_bytes(image: UInt8, quality: int = QUALITY) -> int:
    """Bytes of a uint8 image [H, W, 3] as a JPEG file by Pillow, with its default colour subsampling."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG", quality=quality)
    return file.tell()
