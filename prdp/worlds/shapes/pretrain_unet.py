"""Trains the tiny UNet and its text encoder on latents of rendered scenes with, in the end, partly wrong captions."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from prdp.worlds.shapes.corrupt import ATTRIBUTES, corrupt
from prdp.worlds.shapes.grammar import caption
from prdp.worlds.shapes.pretrain_vae import cosine_rate, encode
from prdp.worlds.shapes.render import render
from prdp.worlds.shapes.scene import Scene
from prdp.worlds.shapes.split import scene_at
from prdp.worlds.shapes.tiny_pipeline import IMAGE_SIZE

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


@dataclass(frozen=True)
class LatentData:
    """Scenes and the scaled posterior means of their renders, float32 [n, C, h, w]."""

    scenes: list[Scene]
    latents: torch.Tensor

    @classmethod
    def render(cls, pipeline: StableDiffusionPipeline, count: int, seed: int) -> LatentData:
        """`count` random training scenes, rendered and encoded; a pure function of its arguments."""
        rng = np.random.default_rng((seed, 1))
        scenes: list[Scene] = []
        parts: list[torch.Tensor] = []
        while len(scenes) < count:
            block = [scene_at("train", len(scenes) + i, seed) for i in range(min(512, count - len(scenes)))]
            with torch.no_grad():
                parts.append(encode(pipeline.vae, np.stack([render(scene, rng, IMAGE_SIZE) for scene in block])))
            scenes += block
        return cls(scenes, torch.cat(parts) * pipeline.vae.config.scaling_factor)


def noisy_caption(scene: Scene, rng: np.random.Generator, rate: float) -> str:
    """The caption of a scene of which each attribute was changed with probability `rate`, as web captions are wrong.

    One colour, shape, size or fill of a random object, the relation, the background and the count are each changed
    independently of the others.
    """
    for attribute in ATTRIBUTES:
        if rng.random() < rate and not (attribute == "relation" and scene.relation is None):
            scene = corrupt(scene, attribute, rng)
    return caption(scene)


def take_step(
    loss: torch.Tensor,
    modules: torch.nn.Module,
    average: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    ema_decay: float,
) -> float:
    """Descend on a loss, and fold the weights into their average; the gradient's norm before it is clipped to 1."""
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
    optimizer.step()
    # A short memory at first, so that the average is never dominated by the random start.
    decay = min(ema_decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for kept, current in zip(average.parameters(), modules.parameters(), strict=True):
            kept.lerp_(current, 1.0 - decay)
    return norm.item()


def train_unet(
    pipeline: StableDiffusionPipeline,
    data: LatentData,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    caption_noise: float,
    caption_dropout: float,
    ema_decay: float,
    seed: int,
    log: Callable[[int, dict[str, float]], None],
    save: Callable[[int, StableDiffusionPipeline], None],
    save_every: int,
) -> None:
    """Epsilon prediction on scaled latents; leaves the averaged weights in the pipeline.

    Args:
        caption_noise: rate of `noisy_caption`.
        caption_dropout: fraction of captions replaced by the empty one, for classifier-free guidance.
        save: called with the averaged weights every `save_every` steps.
    """
    unet, text_encoder = pipeline.unet, pipeline.text_encoder
    modules = torch.nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    average = deepcopy(modules).requires_grad_(False)
    optimizer = torch.optim.AdamW(modules.parameters(), lr=learning_rate, weight_decay=1e-2, betas=(0.9, 0.99))
    alphas_cumprod = pipeline.scheduler.alphas_cumprod
    tokenizer = pipeline.tokenizer
    modules.train()
    total = 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * cosine_rate(step, steps, 100)
        rng = np.random.default_rng((seed, 2, step))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        rows = rng.integers(len(data.scenes), size=batch_size)
        captions = [
            "" if rng.random() < caption_dropout else noisy_caption(data.scenes[row], rng, caption_noise)
            for row in rows
        ]
        clean = data.latents[torch.from_numpy(rows)]
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(len(alphas_cumprod), (batch_size,), generator=generator)
        level = alphas_cumprod[timesteps][:, None, None, None]
        noisy = level.sqrt() * clean + (1.0 - level).sqrt() * noise
        tokens = tokenizer(
            captions, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
        ).input_ids
        states = text_encoder(tokens).last_hidden_state
        loss = F.mse_loss(unet(noisy, timesteps, encoder_hidden_states=states).sample, noise)
        norm = take_step(loss, modules, average, optimizer, step, ema_decay)
        total += loss.item()
        if (step + 1) % 50 == 0:
            log(step + 1, {"unet/loss": total / 50, "unet/grad_norm": norm})
            total = 0.0
        if (step + 1) % save_every == 0 or step == steps - 1:
            live = {key: value.clone() for key, value in modules.state_dict().items()}
            modules.load_state_dict(average.state_dict())
            save(step + 1, pipeline)
            if step != steps - 1:
                modules.load_state_dict(live)
    modules.eval()
