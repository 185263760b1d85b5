"""Trains the tiny autoencoder on rendered scenes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from prdp.types import UInt8
from prdp.worlds.shapes.render import render
from prdp.worlds.shapes.split import scene_at
from prdp.worlds.shapes.tiny_pipeline import IMAGE_SIZE

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


def to_pixels(images: UInt8) -> torch.Tensor:
    """uint8 [B, H, W, 3] to float32 [B, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def cosine_rate(step: int, steps: int, warmup: int) -> float:
    """Learning-rate factor: linear warm-up from 0, then a half cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def training_images(seed: int, step: int, count: int) -> UInt8:
    """Fresh renders of training scenes for one step, [count, size, size, 3]; a pure function of its arguments."""
    rng = np.random.default_rng((seed, step))
    scenes = (scene_at("train", step * count + i, seed) for i in range(count))
    return np.stack([render(scene, rng, IMAGE_SIZE) for scene in scenes])


def train_vae(
    vae: AutoencoderKL,
    *,
    start: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    kl_weight: float,
    seed: int,
    log: Callable[[int, dict[str, float]], None],
) -> None:
    """One cosine cycle of `steps` steps, on the images from step `start` on.

    Minimises reconstruction error + kl_weight * mean KL per latent; sets `vae.config.scaling_factor`.

    The error is |e| + e^2 per value, five times as heavy on objects as on the background: objects cover a tenth of the
    pixels, and a plain L1 is content with an empty picture for a long time.
    """
    optimizer = torch.optim.AdamW(vae.parameters(), lr=learning_rate, weight_decay=1e-4, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine_rate(step, steps, 50))
    generator = torch.Generator().manual_seed(seed + start)
    vae.train()
    for step in range(steps):
        pixels = to_pixels(training_images(seed, start + step, batch_size))
        posterior = vae.encode(pixels).latent_dist
        reconstruction = vae.decode(posterior.sample(generator=generator)).sample
        absolute = (reconstruction - pixels).abs()
        foreground = (pixels - pixels[:, :, :1, :1]).abs().amax(1, keepdim=True) > 0.2
        error = ((1.0 + 4.0 * foreground) * (absolute + absolute.square())).mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad()
        (error + kl_weight * kl).backward()
        norm = torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 25 == 0 or step == steps - 1:
            values = {"l1": absolute.mean(), "error": error, "kl": kl, "grad_norm": norm}
            log(start + step, {f"vae/{name}": value.item() for name, value in values.items()})
    vae.eval()
    with torch.no_grad():
        latents = encode(vae, training_images(seed + 1, 0, 256))
    vae.register_to_config(scaling_factor=1.0 / latents.std().item())


def encode(vae: AutoencoderKL, images: UInt8, batch_size: int = 64) -> torch.Tensor:
    """Posterior means of uint8 images [n, H, W, 3]: float32 [n, C, h, w], not scaled."""
    parts = [
        vae.encode(to_pixels(images[start : start + batch_size])).latent_dist.mean
        for start in range(0, len(images), batch_size)
    ]
    return torch.cat(parts)
