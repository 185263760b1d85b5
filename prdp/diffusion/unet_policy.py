"""What policies of the UNet families have in common: CLIP text encoders, a UNet that learns, a VAE, one process."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from prdp.config import ModelConfig, SamplerConfig
from prdp.diffusion.conditions import Conditions
from prdp.diffusion.folder_policy import FolderPolicy, vae_config
from prdp.diffusion.image_size import KEYS, check_side, vae_factor
from prdp.diffusion.pipeline_loading import pipeline_class
from prdp.diffusion.process import Process
from prdp.diffusion.usage import usage_text
from prdp.diffusion.variance_preserving import VariancePreserving

PIPELINE_UNIT = 8
"""Pixels that diffusers' pipelines want sides to be multiples of, whatever the VAE."""


class UNetPolicy(FolderPolicy, ABC):
    """A folder with a UNet; a family adds how prompts are encoded and the UNet is called. See `FolderPolicy`.

    `scheduler_config` is that of the scheduler that diffusers makes of the checkpoint's: LCMScheduler where the folder
    names it, else DDIM's.
    """

    NETWORK = "unet"

    @classmethod
    def process_of(cls, model: ModelConfig) -> Process:
        """Of the checkpoint's scheduler, which is read without loading weights."""
        from prdp.diffusion.effective_scheduler import effective_scheduler
        from prdp.diffusion.libraries import quiet
        from prdp.diffusion.model_folder import read_component

        quiet()
        config = read_component(cls._folder(model), "scheduler")
        return VariancePreserving(effective_scheduler(config, cls.FORMAT).config)

    def usage(self, model: ModelConfig, sampler: SamplerConfig, mode: str, weights: Path, prompt: str) -> str:
        """A program around the pipeline of `FORMAT`."""
        return usage_text(
            model, sampler, self.scheduler_config, self.picture_size, mode, weights, prompt, self.FORMAT
        )

    @staticmethod
    def _embeds_guidance(network: Mapping[str, Any]) -> bool:
        """Latent consistency models do."""
        return network["time_cond_proj_dim"] is not None

    def _with_guidance(self, conditions: Conditions, guidance_scale: float) -> Conditions:
        """With `guidance` [B, time_cond_proj_dim], the embedding of w - 1 by diffusers' pipeline."""
        scales = torch.full((len(conditions),), guidance_scale - 1.0)
        # Of the class: a plan of memory has no pipeline.
        embedding = pipeline_class(self.FORMAT).get_guidance_scale_embedding
        embedded = embedding(self.pipeline, scales, self.network.config.time_cond_proj_dim)
        return replace(conditions, fields={**conditions.fields, "guidance": embedded.to(self.device)})

    @classmethod
    def _latent_shape_in(cls, folder: Path, model: ModelConfig) -> tuple[int, int, int]:
        return latent_shape(cls._network_config(folder), vae_config(folder), (model.height, model.width))

    def _tokens(self, tokenizer: Any, prompts: Sequence[str], length: int) -> Any:
        """Token ids and mask [B, length] on the policy's device; longer prompts are cut."""
        return tokenizer(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).to(self.device)


def latent_shape(
    unet: Mapping[str, Any], vae: Mapping[str, Any], size: tuple[int | None, int | None]
) -> tuple[int, int, int]:
    """(C, h, w) of the latents of images of `size`, height and width in pixels; None takes the UNet's own.

    Any number of latents goes through the UNet: where a side is odd at a level, diffusers' UNet takes the half rounded
    up, and comes back to the very side. What is refused is what diffusers' pipeline refuses.

    Raises:
        StartError: the VAE or diffusers' pipeline cannot take the size; names the nearest that fit.
    """
    factor, own = vae_factor(vae), unet["sample_size"]
    height, width = (
        side if pixels is None else pixels // factor
        for side, pixels in zip((own, own) if isinstance(own, int) else own, size, strict=True)
    )
    for key, pixels in zip(KEYS, size, strict=True):
        if pixels is not None:
            check_side(key, pixels, math.lcm(factor, PIPELINE_UNIT))
    return int(unet["in_channels"]), int(height), int(width)


def text_width(unet: Mapping[str, Any]) -> int:
    """Of the states that a UNet takes; all levels take the same."""
    width = unet["cross_attention_dim"]
    return int(width if isinstance(width, int) else width[0])


def text_length(tokenizer: Any, text_encoder: Any) -> int:
    """Tokens of a prompt: the tokenizer's length, bounded by the text encoder's, as a tokenizer may name none."""
    return min(int(tokenizer.model_max_length), int(text_encoder.config.max_position_embeddings))
