"""A Stable Diffusion 3 of two narrow layers, with random weights."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

from prdp.worlds.shapes.tiny_flow_pipeline import build_flow_pipeline, build_transformer


def narrow_pipeline(t5: bool = False, dynamic: bool = False) -> StableDiffusion3Pipeline:
    """For 32x32 pixels; with a T5 of one layer, or without one."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=1.5,
        shift_factor=0.06,
        mid_block_add_attention=False,
    )
    pipeline = build_flow_pipeline(vae)
    pipeline.register_modules(transformer=build_transformer(layers=2))
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic)
    if t5:
        from transformers import T5Config, T5EncoderModel

        encoder = T5EncoderModel(
            T5Config(vocab_size=len(pipeline.tokenizer), d_model=192, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        )
        # T5's own tokenizer needs a trained model file; any with the same interface will do here.
        pipeline.register_modules(text_encoder_3=encoder, tokenizer_3=pipeline.tokenizer)
    return pipeline
