"""Noise as a pure function of (seed, epoch, prompt, image): the same from one actor or eight, and after a crash."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prdp.types import Float32, Int64


class ImageNoise:
    """The noise of a batch of images: first x_T, then one draw per denoising step, in order.

    Each image has a counter-based stream (Philox) of its own, keyed by (seed, epoch, position of its prompt in the
    epoch, number of the image in its group); so neither batch composition nor device can change it.
    """

    def __init__(self, seed: int, epoch: int, prompts: Int64, images: Int64, shape: Sequence[int]) -> None:
        """`prompts` and `images`: int64 [B]; `shape`: of one latent, (C, h, w)."""
        self._shape = tuple(shape)
        self._streams = [
            np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch, int(prompt), int(image)))))
            for prompt, image in zip(prompts, images, strict=True)
        ]

    def draw(self) -> Float32:
        """The next standard-normal draw of every image, float32 [B, C, h, w]."""
        return np.stack([stream.standard_normal(self._shape, dtype=np.float32) for stream in self._streams])
