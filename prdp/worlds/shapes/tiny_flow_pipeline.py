"""The untrained tiny Stable Diffusion 3: the component classes of v3.5 without T5, for 32x32 pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prdp.worlds.shapes.tiny_pipeline import (
    IMAGE_SIZE,
    LATENT_CHANNELS,
    MAX_TOKENS,
    TEXT_WIDTH,
    VAE_CHANNELS,
    build_tokenizer,
)

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline, StableDiffusionPipeline
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

LATENT_SIZE = IMAGE_SIZE // 2 ** (len(VAE_CHANNELS) - 1)
SECOND_TEXT_WIDTH = 64
CAPTION_TOKENS = 24
"""The longest caption has 22 words; then there are the marks of start and end."""
LAYERS, HEADS, HEAD_DIM = 6, 4, 32


def build_transformer(layers: int = LAYERS) -> SD3Transformer2DModel:
    """Joint blocks of width 128 on patches of one latent pixel, with the query and key norms of v3.5."""
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=LATENT_SIZE,
        patch_size=1,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=layers,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=HEADS,
        joint_attention_dim=TEXT_WIDTH + SECOND_TEXT_WIDTH,
        caption_projection_dim=HEADS * HEAD_DIM,
        pooled_projection_dim=TEXT_WIDTH + SECOND_TEXT_WIDTH,
        pos_embed_max_size=2 * LATENT_SIZE,
        qk_norm="rms_norm",
    )


def build_text_encoder(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPTextModelWithProjection:
    """The states that the transformer reads are those before the last layer; the pooled ones come after it."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_flow_pipeline(vae: AutoencoderKL) -> StableDiffusion3Pipeline:
    """The whole pipeline around a trained autoencoder, with fresh weights from torch's current random state."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    tokenizer = build_tokenizer()
    tokenizer.model_max_length = CAPTION_TOKENS
    return StableDiffusion3Pipeline(
        transformer=build_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0),
        vae=vae,
        text_encoder=build_text_encoder(tokenizer, TEXT_WIDTH, 3),
        tokenizer=tokenizer,
        text_encoder_2=build_text_encoder(tokenizer, SECOND_TEXT_WIDTH, 2),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def start_from_stable_diffusion(pipeline: StableDiffusion3Pipeline, source: StableDiffusionPipeline) -> None:
    """Copy the trained text encoder of the other embedded pipeline into the first one, but for its additional layer.

    Raises:
        KeyError, RuntimeError: the source's encoder is of another architecture.
    """
    target = pipeline.text_encoder.state_dict()
    weights = {
        (name if name in target else f"text_model.{name}"): value
        for name, value in source.text_encoder.state_dict().items()
    }
    for name, value in weights.items():
        target[name].copy_(value)
