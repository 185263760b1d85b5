"""How noise and data mix: what samplers and denoising evidence ask of a model's process."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from prdp.config import SamplerConfig
from prdp.diffusion.transitions import Transitions
from prdp.types import Float32, Float64, Int64

_DOMAIN = 0x6E6F697365
"""Keeps these streams apart from those of `ImageNoise`, whose noise made the very latents that are noised here."""


class Process(Protocol):
    """`VariancePreserving` (DDPM, DDIM) or `RectifiedFlow`.

    Times are float64 in the unit of the process: training timesteps 0 to 999, or sigma in (0, 1].
    """

    def transitions(self, sampler: SamplerConfig) -> Transitions:
        """The table of a sampler section; a ValueError names the key, its value and what was expected."""
        ...

    def draw_time(self, stream: np.random.Generator) -> float:
        """A time to compute a denoising error at."""
        ...

    def noised(
        self, latents: torch.Tensor, times: Float64, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Clean latents [b, C, h, w] noised to times [b], and the network output that is right for them."""
        ...

    def clean(self, latents: torch.Tensor, times: Float64, output: torch.Tensor) -> torch.Tensor:
        """The clean latents that a network output [b, C, h, w] at noised latents tells of."""
        ...


def draw_cells(
    process: Process,
    seed: int,
    update: int,
    prompts: Int64,
    images: Int64,
    draws: Int64,
    shape: tuple[int, ...],
) -> tuple[Float64, Float32]:
    """Times float64 [b] and noise float32 [b, *shape] of denoising evidence.

    Each cell has a stream of its own, keyed by (seed, update, prompt, image, draw); neither the microbatch nor the
    device can change it.

    Args:
        update: number of the optimizer step.
        prompts, images, draws: int64 [b], position of the prompt in its epoch, number of the image in its group
            (one for all where they share their noise), number of the draw.
        shape: of one latent.
    """
    times, noise = np.empty(len(draws), np.float64), np.empty((len(draws), *shape), np.float32)
    for cell, (prompt, image, draw) in enumerate(zip(prompts, images, draws, strict=True)):
        key = (_DOMAIN, seed, update, int(prompt), int(image), int(draw))
        stream = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
        times[cell] = process.draw_time(stream)
        noise[cell] = stream.standard_normal(shape, dtype=np.float32)
    return times, noise


def denoising_log_likelihood(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Minus the squared error of network outputs [b, C, h, w], mean over latent dims; [b]."""
    return -(output - target).square().flatten(1).mean(1)


def column(values: Float64, like: torch.Tensor) -> torch.Tensor:
    """Float64 [b] as a tensor that multiplies latents [b, ...] image by image."""
    return torch.from_numpy(values).to(like.device, like.dtype).view(-1, *[1] * (like.dim() - 1))
