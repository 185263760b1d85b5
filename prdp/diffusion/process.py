"""How noise and data mix: what samplers and denoising evidence ask of a model's process."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from prdp.config import SamplerConfig
from prdp.diffusion.transitions import Transitions
from prdp.types import Float32, Float64, Int64, Times

_DOMAIN = 0x6E6F697365
"""Keeps these streams apart from those of `ImageNoise`, whose noise made the very latents that are noised here."""
_ORDER = 0x6F72646572
"""Keeps the order of the sampler's times apart from both."""


class Process(Protocol):
    """`VariancePreserving` (DDPM, DDIM) or `RectifiedFlow`.

    Times are float64 in the unit of the process: training timesteps 0 to 999, or sigma in (0, 1].
    """

    def transitions(self, sampler: SamplerConfig) -> Transitions:
        """The table of a sampler section; a ValueError names the key, its value and what was expected."""
        ...

    def time_at(self, quantile: float) -> float:
        """The time at a quantile in [0, 1) of those that the network is pretrained at, from pure noise down."""
        ...

    def noise_level(self, times: Float64) -> Float64:
        """What noise is multiplied by in noised latents at times [b], from 0 at clean ones to 1; [b]."""
        ...

    def noised(
        self, latents: torch.Tensor, times: Float64, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Clean latents [b, C, h, w] noised to times [b], and the network output that is right for them."""
        ...

    def clean(self, latents: torch.Tensor, times: Float64, output: torch.Tensor) -> torch.Tensor:
        """The clean latents that a network output [b, C, h, w] at noised latents tells of."""
        ...


@dataclass(frozen=True)
class Draws:
    """Times and noise of denoising evidence.

    Each cell has a stream of its own, keyed by (seed, update, prompt, image, draw); neither the microbatch nor the
    device can change it.

    Attributes:
        process: that noises.
        seed: of the run.
        update: number of the optimizer step.
        count: draws per image.
        times: uniform over those of pretraining; stratified: one in each of `count` equal parts of these; sampler:
            steps of the sampler, in random order without repetition while there are enough; sampler_stratified: one of
            these in each of `count` equal parts.
        noisiest: share of the times, from pure noise down, that is drawn from.
        steps: float64 [T], the sampler's times in its order.
    """

    process: Process
    seed: int
    update: int
    count: int = 1
    times: Times = "uniform"
    noisiest: float = 1.0
    steps: Float64 | None = None

    def cells(
        self, prompts: Int64, images: Int64, draws: Int64, shape: tuple[int, ...]
    ) -> tuple[Float64, Float32]:
        """Times float64 [b] and noise float32 [b, *shape].

        Args:
            prompts, images, draws: int64 [b], position of the prompt in its epoch, number of the image in its group
                (one for all where they share their noise), number of the draw.
            shape: of one latent.
        """
        times, noise = np.empty(len(draws), np.float64), np.empty((len(draws), *shape), np.float32)
        drawn: dict[tuple[int, ...], int] = {}
        for cell, address in enumerate(zip(prompts.tolist(), images.tolist(), draws.tolist(), strict=True)):
            alike = drawn.setdefault(address, cell)
            if alike != cell:
                times[cell], noise[cell] = times[alike], noise[alike]
                continue
            stream = self._stream(_DOMAIN, *address)
            times[cell] = self._time(stream, *address)
            noise[cell] = stream.standard_normal(shape, dtype=np.float32)
        return times, noise

    def _time(self, stream: np.random.Generator, prompt: int, image: int, draw: int) -> float:
        within = stream.random()
        if self.times == "uniform":
            return self.process.time_at(self.noisiest * within)
        if self.times == "stratified":
            return self.process.time_at(self.noisiest * (draw + within) / self.count)
        assert self.steps is not None, "the sampler's times are not known"
        steps = self.steps[: math.ceil(self.noisiest * len(self.steps))]
        if self.times == "sampler_stratified":
            return float(steps[math.floor((draw + within) / self.count * len(steps))])
        turn, place = divmod(draw, len(steps))
        return float(self._stream(_ORDER, prompt, image, turn).permutation(steps)[place])

    def _stream(self, *key: int) -> np.random.Generator:
        domain, *rest = key
        return np.random.Generator(
            np.random.Philox(np.random.SeedSequence((domain, self.seed, self.update, *rest)))
        )


def denoising_error(output: torch.Tensor, target: torch.Tensor, adaptive_weight: bool = False) -> torch.Tensor:
    """Squared error of network outputs [b, C, h, w], mean over latent dims; [b].

    Args:
        adaptive_weight: it is divided by max(mean |output - target|, 1e-5), without gradient.
    """
    error = squared_distance(output, target)
    if not adaptive_weight:
        return error
    return error / (output - target).detach().abs().flatten(1).mean(1).clamp(min=1e-5)


def squared_distance(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Mean over latent dims of (left - right)^2, for [b, C, h, w]; [b]."""
    return (left - right).square().flatten(1).mean(1)


def column(values: Float64, like: torch.Tensor) -> torch.Tensor:
    """Float64 [b] as a tensor that multiplies latents [b, ...] image by image."""
    return torch.from_numpy(values).to(like.device, like.dtype).view(-1, *[1] * (like.dim() - 1))
