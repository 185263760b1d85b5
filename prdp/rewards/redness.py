"""How red an image is: the easiest reward there is, to see that the machinery learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prdp.types import Float64, UInt8


class Redness:
    """Mean of red minus the mean of green and blue, from -1 (cyan) to 1 (red); the prompt plays no part."""

    name = "redness"
    version = "1"

    def score(
        self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> Float64:
        """Rewards float64 [B] of uint8 images [B, H, W, 3]."""
        channels = images.astype(np.float64).mean(axis=(1, 2)) / 255.0
        return channels[:, 0] - channels[:, 1:].mean(axis=1)
