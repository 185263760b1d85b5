"""Flow pipelines of the true layouts with narrow layers and random weights: Stable Diffusion 3.5, FLUX.1, Z-Image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from prdp.worlds.shapes.tiny_pipeline import build_tokenizer

CHAT = "{% for one in messages %}{{ one.content }}{% endfor %}{% if enable_thinking %}.{% endif %}"
"""Of Qwen's tokenizer here: a letter is a token."""


def narrow_vae() -> AutoencoderKL:
    """32x32 pixels to 4 channels of 8x8 latents, with the shift of the released ones."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def narrow_sd3(**scheduler: Any) -> StableDiffusion3Pipeline:
    """Of 3.5 medium: query and key norms, a second attention in the first block, three text encoders."""
    torch.manual_seed(0)
    tokenizer = _clip_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=24,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
        vae=narrow_vae(),
        text_encoder=CLIPTextModelWithProjection(_clip(tokenizer, 8)),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(_clip(tokenizer, 16)),
        tokenizer_2=tokenizer,
        text_encoder_3=_t5(32),
        tokenizer_3=_t5_tokenizer(),
    )


def narrow_flux(guidance: bool = True, **scheduler: Any) -> FluxPipeline:
    """Of FLUX.1-dev; without guidance that of FLUX.1-schnell, whose steps are not shifted."""
    torch.manual_seed(0)
    tokenizer = _clip_tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=8,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    )
    shift = {"use_dynamic_shifting": True, "base_image_seq_len": 8, "max_image_seq_len": 64} if guidance else {}
    return FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(**{**shift, **scheduler}),
        vae=narrow_vae(),
        text_encoder=CLIPTextModel(_clip(tokenizer, 8)),
        tokenizer=tokenizer,
        text_encoder_2=_t5(24),
        tokenizer_2=_t5_tokenizer(),
    )


def narrow_z_image(**scheduler: Any) -> ZImagePipeline:
    """Of Z-Image: refiners of noise and text before the layers, three axes of positions."""
    torch.manual_seed(0)
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[128, 16, 16],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token)
    tokenizer = _qwen_tokenizer()
    encoder = Qwen3Model(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
        )
    )
    return ZImagePipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
        vae=narrow_vae(),
        text_encoder=encoder,
        tokenizer=tokenizer,
    )


NARROW: dict[str, Callable[..., Any]] = {
    "stable_diffusion_3": narrow_sd3,
    "flux": narrow_flux,
    "z_image": narrow_z_image,
}
"""`model.family` -> its pipeline."""
TEXT_TOKENS = {"stable_diffusion_3": 5, "flux": 5, "z_image": 24}
"""Of their `model.max_sequence_length`, with which some prompts of the tests are cut."""


def _clip_tokenizer() -> CLIPTokenizer:
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = 8
    return tokenizer


def _clip(tokenizer: CLIPTokenizer, width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _t5_tokenizer() -> T5Tokenizer:
    letters = [(chr(code), -3.0) for code in range(ord("a"), ord("z") + 1)]
    return T5Tokenizer(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\N{LOWER ONE EIGHTH BLOCK}", -2.0), *letters],
        extra_ids=0,
        model_max_length=16,
    )


def _t5(width: int) -> T5EncoderModel:
    config = T5Config(vocab_size=32, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval()  # It drops states out otherwise.


def _qwen_tokenizer() -> Qwen2Tokenizer:
    vocabulary = {"<|endoftext|>": 0} | {letter: 1 + n for n, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], model_max_length=1024)
    tokenizer.chat_template = CHAT
    return tokenizer
