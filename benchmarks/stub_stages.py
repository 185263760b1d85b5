"""For benchmarks: stages that only wait, with trajectories of true size, and a rank of a learner that only reads."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prdp.types import Float64, PromptBatch, Rollout, UInt8, Weights


class WaitingSampler:
    """Takes so long for a chunk, and answers with trajectories of a given shape, made once and ready in memory.

    Args:
        seconds_per_prompt: of a group of images.
        jitter: share by which the seconds of a chunk vary, either way; see `seconds_of`.
        steps: S; latents are float32 [S + 1, channels, side, side] an image.
        pixels: images are uint8 [pixels, pixels, 3].
    """

    def __init__(
        self,
        seconds_per_prompt: float,
        jitter: float = 0.0,
        *,
        steps: int = 4,
        channels: int = 4,
        side: int = 8,
        pixels: int = 32,
    ) -> None:
        self._seconds, self._jitter, self._steps, self._pixels = seconds_per_prompt, jitter, steps, pixels
        self._shape = channels, side, side
        self._bound = (0, "")
        self._arrays: dict[str, np.ndarray] = {}

    def load_weights(self, weights: Weights) -> tuple[int, str]:
        """Bind nothing."""
        self._bound = weights.version, weights.checksum
        return self._bound

    def sample(self, prompts: PromptBatch, images_per_prompt: int, seed: int, trajectory: bool = True) -> Rollout:
        """Wait, and answer with zeros, whose pages take no memory until they are written to."""
        count = len(prompts) * images_per_prompt
        if len(self._arrays.get("latents", ())) != count:
            self._arrays = {
                "latents": np.zeros((count, self._steps + 1, *self._shape), np.float32),
                "base_output": np.zeros((count, self._steps, *self._shape), np.float32),
                "log_ratio": np.zeros((count, self._steps), np.float32),
                "steps": np.tile(np.arange(self._steps), (count, 1)),
            }
            self._images = np.zeros((count, self._pixels, self._pixels, 3), np.uint8)
        time.sleep(seconds_of(self._seconds * len(prompts), self._jitter, prompts.epoch, prompts.offset))
        return Rollout(
            prompts=prompts,
            images_per_prompt=images_per_prompt,
            images=self._images,
            stored=self._arrays,
            weights_version=self._bound[0],
            weights_checksum=self._bound[1],
        )


def seconds_of(mean: float, jitter: float, epoch: int, offset: int) -> float:
    """How long the chunk at a place takes: uniform around the mean, always the same."""
    return mean * (1.0 + jitter * (2.0 * float(np.random.default_rng([epoch, offset]).random()) - 1.0))


class WaitingReward:
    """Takes so long for a prompt's images."""

    def __init__(self, seconds_per_prompt: float) -> None:
        self._seconds = seconds_per_prompt

    def score(
        self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]], where: str
    ) -> tuple[Float64, dict[str, Float64]]:
        """Wait, and answer with zeros."""
        time.sleep(self._seconds * len(set(prompts)))
        return np.zeros(len(images)), {}


class ReadingRank:
    """Reads the rows of its part of a rollout, a microbatch of cells at a time, as a rank that learns does."""

    def __init__(self) -> None:
        self._rollout: Rollout | None = None

    def take(self, rollout: Rollout) -> None:
        """Work on this part."""
        self._rollout = rollout

    def read(self, microbatch: int) -> int:
        """Bytes that were read."""
        assert self._rollout is not None
        stored, total = self._rollout.stored, 0
        images, columns = self._rollout.numbers("steps").shape
        for first in range(0, images * columns, microbatch):
            rows, steps = np.divmod(np.arange(first, min(first + microbatch, images * columns)), columns)
            total += stored["latents"][rows, steps].nbytes + stored["latents"][rows, steps + 1].nbytes
            total += stored["base_output"][rows, steps].nbytes
        return total

    def let_go(self) -> None:
        """Hold nothing any more."""
        self._rollout = None


class Numbers:
    """As many prompts as asked for, all different."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[str, dict[str, Any]]:
        return f"prompt {index}", {}
