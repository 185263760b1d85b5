"""A Stable Diffusion of as many levels as the released ones have, with narrow layers and random weights."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel

from prdp.worlds.shapes.tiny_pipeline import build_pipeline


def deep_pipeline() -> StableDiffusionPipeline:
    """For 64x64 pixels; 8 pixels a latent, and 8 latents at the lowest level of the UNet."""
    torch.manual_seed(0)
    pipeline = build_pipeline()
    narrow = (8, 8, 8, 8)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=narrow,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        mid_block_add_attention=False,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=narrow,
        layers_per_block=1,
        cross_attention_dim=pipeline.text_encoder.config.hidden_size,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    pipeline.register_modules(vae=vae, unet=unet)
    return pipeline
