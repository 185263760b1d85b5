"""Noise as a pure function of (seed, epoch, prompt, image): the same from one actor or eight, and after a crash."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from prdp.types import Float32, Int64

_DOMAIN = 0x636875726E
"""Keeps the streams of start churn apart from those of images, the first of which is shared."""
_NUMBERS_AHEAD = 64
"""Of an image, drawn in one call: a stream gives the same numbers in any portions, and calls cost more than these."""


class ImageNoise:
    """The noise of a batch of images: first x_T, then one draw per denoising step, in order.

    Each image has a counter-based stream (Philox) of its own, keyed by (seed, epoch, position of its prompt in the
    epoch, number of the image in its group); so neither batch composition nor device can change it.
    """

    def __init__(
        self,
        seed: int,
        epoch: int,
        prompts: Int64,
        images: Int64,
        shape: Sequence[int],
        shared_start: bool = False,
        start_churn: float = 0.0,
    ) -> None:
        """The draws of steps depend on neither `shared_start` nor `start_churn`.

        Args:
            prompts, images: int64 [B].
            shape: of one latent, (C, h, w).
            shared_start: x_T of image 0 for all images of a prompt.
            start_churn: gamma; each image starts from C x_T + S n with C = 1 / (1 + gamma), S = sqrt(1 - C^2) and a
                draw n of its own, which is standard normal as x_T is.
        """
        self._start: Float32 | None = None
        if shared_start:
            self._start = ImageNoise(seed, epoch, prompts, np.zeros_like(images), shape).draw()
            if start_churn:
                kept = 1.0 / (1.0 + start_churn)
                own = [
                    stream.standard_normal(tuple(shape), dtype=np.float32)
                    for stream in _streams((_DOMAIN, seed, epoch), prompts, images)
                ]
                self._start = kept * self._start + math.sqrt(1.0 - kept**2) * np.stack(own)
        self._ahead = max(1, _NUMBERS_AHEAD // math.prod(shape))
        self._shape = (self._ahead, *shape)
        self._streams = _streams((seed, epoch), prompts, images)
        self._drawn: list[Float32] = []

    def peek(self) -> Float32:
        """What `draw` gives next."""
        drawn = self.draw()
        self._drawn.append(drawn)
        return drawn

    def draw(self) -> Float32:
        """The next standard-normal draw of every image, float32 [B, C, h, w]."""
        if not self._drawn:
            drawn = np.stack([stream.standard_normal(self._shape, dtype=np.float32) for stream in self._streams], 1)
            self._drawn = list(drawn[::-1])
        drawn = self._drawn.pop()
        if self._start is not None:
            drawn, self._start = self._start, None
        return drawn


def _streams(key: tuple[int, ...], prompts: Int64, images: Int64) -> list[np.random.Generator]:
    """A stream for each image."""
    return [
        np.random.Generator(np.random.Philox(np.random.SeedSequence((*key, int(prompt), int(image)))))
        for prompt, image in zip(prompts, images, strict=True)
    ]
