"""Denoising evidence: final latents noised anew, and what the network should have said of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from prdp.diffusion.transitions import alphas_cumprod
from prdp.types import Float32, Float64, Int64

_DOMAIN = 0x6E6F697365
"""Keeps these streams apart from those of `ImageNoise`, whose noise made the very latents that are noised here."""


class ForwardProcess:
    """q(x_t | x_0) of a diffusers scheduler configuration, at every training timestep.

    Args:
        scheduler: configuration with num_train_timesteps, betas and prediction_type.
    """

    def __init__(self, scheduler: Mapping[str, Any]) -> None:
        self._abar: Float64 = alphas_cumprod(scheduler)
        self._prediction = scheduler.get("prediction_type", "epsilon")

    def draw(
        self, seed: int, update: int, prompts: Int64, images: Int64, draws: Int64, shape: tuple[int, ...]
    ) -> tuple[Int64, Float32]:
        """Timesteps int64 [b], uniform over all training timesteps, and noise float32 [b, *shape].

        Each cell has a stream of its own, keyed by (seed, update, prompt, image, draw); neither the microbatch nor the
        device can change it.

        Args:
            update: number of the optimizer step.
            prompts, images, draws: int64 [b], position of the prompt in its epoch, number of the image in its group
                (one for all where they share their noise), number of the draw.
            shape: of one latent.
        """
        timesteps, noise = np.empty(len(draws), np.int64), np.empty((len(draws), *shape), np.float32)
        for cell, (prompt, image, draw) in enumerate(zip(prompts, images, draws, strict=True)):
            key = (_DOMAIN, seed, update, int(prompt), int(image), int(draw))
            stream = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
            timesteps[cell] = stream.integers(len(self._abar))
            noise[cell] = stream.standard_normal(shape, dtype=np.float32)
        return timesteps, noise

    def noised(
        self, latents: torch.Tensor, timesteps: Int64, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x_t and the network output that is right for it, both of the latents' shape.

        Args:
            latents: x_0, [b, C, h, w].
            timesteps: int64 [b].
            noise: standard normal, [b, C, h, w].
        """

        def column(values: Float64) -> torch.Tensor:
            return torch.from_numpy(values).to(latents.device, latents.dtype).view(-1, *[1] * (latents.dim() - 1))

        signal, spread = column(np.sqrt(self._abar[timesteps])), column(np.sqrt(1.0 - self._abar[timesteps]))
        targets = {"epsilon": noise, "v_prediction": signal * noise - spread * latents, "sample": latents}
        return signal * latents + spread * noise, targets[self._prediction]


def denoising_log_likelihood(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Minus the squared error of network outputs [b, C, h, w], mean over latent dims; [b]."""
    return -(output - target).square().flatten(1).mean(1)
