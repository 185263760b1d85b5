"""Folders with configurations of released models in true size and no weights; sizes as their authors publish them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from narrow_transformers import _clip_tokenizer, _qwen_tokenizer, _t5_tokenizer

CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
CLIP_G = {
    **CLIP_L,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
T5_XXL = {
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_layers": 24,
    "num_heads": 64,
    "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
QWEN3_4B = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "layers_per_block": 2,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
VAE_XL = {**VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True}
VAE_16 = {
    **VAE,
    "latent_channels": 16,
    "sample_size": 1024,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SD15 = {
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
SDXL = {
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "layers_per_block": 2,
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "addition_embed_type": "text_time",
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD35_MEDIUM = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "dual_attention_layers": list(range(13)),
    "qk_norm": "rms_norm",
}
FLUX_DEV = {
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": [16, 56, 56],
}
Z_IMAGE = {
    "in_channels": 16,
    "dim": 3840,
    "n_layers": 30,
    "n_refiner_layers": 2,
    "n_heads": 30,
    "n_kv_heads": 30,
    "cap_feat_dim": 2560,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1024, 512, 512],
}
FLOW = {"shift": 3.0}
MU = {
    "use_dynamic_shifting": True,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "base_shift": 0.5,
    "max_shift": 1.15,
}
_FLOW_EULER, _UNET = "FlowMatchEulerDiscreteScheduler", "UNet2DConditionModel"
_CLIP, _PROJECTED = "CLIPTextModel", "CLIPTextModelWithProjection"
Part = tuple[str, dict[str, Any]]
MODELS: dict[str, tuple[str, dict[str, Part]]] = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": (
        "StableDiffusionPipeline",
        {
            "unet": (_UNET, SD15),
            "vae": ("AutoencoderKL", VAE),
            "text_encoder": (_CLIP, CLIP_L),
            "scheduler": ("PNDMScheduler", BETAS),
        },
    ),
    "stabilityai/stable-diffusion-xl-base-1.0": (
        "StableDiffusionXLPipeline",
        {
            "unet": (_UNET, SDXL),
            "vae": ("AutoencoderKL", VAE_XL),
            "text_encoder": (_CLIP, CLIP_L),
            "text_encoder_2": (_PROJECTED, CLIP_G),
            "scheduler": ("EulerDiscreteScheduler", BETAS),
        },
    ),
    "stabilityai/stable-diffusion-3.5-medium": (
        "StableDiffusion3Pipeline",
        {
            "transformer": ("SD3Transformer2DModel", SD35_MEDIUM),
            "vae": ("AutoencoderKL", VAE_16),
            "text_encoder": (_PROJECTED, CLIP_L),
            "text_encoder_2": (_PROJECTED, CLIP_G),
            "text_encoder_3": ("T5EncoderModel", T5_XXL),
            "scheduler": (_FLOW_EULER, FLOW),
        },
    ),
    "black-forest-labs/FLUX.1-dev": (
        "FluxPipeline",
        {
            "transformer": ("FluxTransformer2DModel", FLUX_DEV),
            "vae": ("AutoencoderKL", VAE_16),
            "text_encoder": (_CLIP, CLIP_L),
            "text_encoder_2": ("T5EncoderModel", T5_XXL),
            "scheduler": (_FLOW_EULER, MU),
        },
    ),
    "Tongyi-MAI/Z-Image": (
        "ZImagePipeline",
        {
            "transformer": ("ZImageTransformer2DModel", Z_IMAGE),
            "vae": ("AutoencoderKL", VAE_16),
            "text_encoder": ("Qwen3Model", QWEN3_4B),
            "scheduler": (_FLOW_EULER, {"shift": 6.0}),
        },
    ),
}
"""Hub id -> class of the pipeline, and of each part with what of its configuration is no default."""
PARAMETERS = {  # in millions, as their authors and model cards tell them
    "stable-diffusion-v1-5/stable-diffusion-v1-5": 860,
    "stabilityai/stable-diffusion-xl-base-1.0": 2567,
    "stabilityai/stable-diffusion-3.5-medium": 2243,
    "black-forest-labs/FLUX.1-dev": 11901,
    "Tongyi-MAI/Z-Image": 6155,
}


def write(folder: Path, model: str, changes: Mapping[str, Mapping[str, Any]] | None = None) -> Path:
    """The small files of a hub repository: configurations and tokenizers, these with few tokens.

    Args:
        changes: part -> what is otherwise in its configuration.
    """
    pipeline, parts = MODELS[model]
    index: dict[str, Any] = {"_class_name": pipeline}
    for name, (kind, config) in parts.items():
        library = "transformers" if name.startswith("text_encoder") else "diffusers"
        index[name] = [library, kind]
        (folder / name).mkdir(parents=True)
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        (folder / name / file).write_text(json.dumps({"_class_name": kind, **config, **(changes or {}).get(name, {})}))
        if library == "transformers":
            tokenizer = (
                _qwen_tokenizer()
                if kind == "Qwen3Model"
                else _t5_tokenizer()
                if kind == "T5EncoderModel"
                else _clip_tokenizer()
            )
            place = name.replace("text_encoder", "tokenizer")
            tokenizer.save_pretrained(folder / place)
            index[place] = [library, type(tokenizer).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
