"""The untrained tiny Stable Diffusion: the component classes of v1.4, for 32x32 pixels, with a few million weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prdp.worlds.shapes.grammar import VOCABULARY

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

IMAGE_SIZE = 32
LATENT_CHANNELS = 4
VAE_CHANNELS = (24, 48, 64)
UNET_CHANNELS = (64, 96)
TEXT_WIDTH = 128
MAX_TOKENS = 32
START, END = "<|startoftext|>", "<|endoftext|>"


def pipeline_folder() -> Path:
    """Where the pretrained pipeline that ships with the package lies, in diffusers format."""
    return Path(__file__).parent / "pipeline"


def build_tokenizer() -> CLIPTokenizer:
    """A byte-pair tokenizer over the printable ASCII letters whose merges make every word of the grammar one token."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)]
    tokens = letters + [letter + "</w>" for letter in letters]
    merges: list[tuple[str, str]] = []
    for word in sorted(VOCABULARY):
        pieces = [*word[:-1], word[-1] + "</w>"]
        # Merging from the right shares the suffix tokens between words and never splits a word of the grammar.
        while len(pieces) > 1:
            left, right = pieces[-2], pieces[-1]
            if left + right not in tokens:
                tokens.append(left + right)
                merges.append((left, right))
            pieces[-2:] = [left + right]
    tokens += [START, END]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two transformer layers of width 128."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_vae() -> AutoencoderKL:
    """32x32 pixels to 4 channels of 8x8 latents."""
    from diffusers import AutoencoderKL

    levels = len(VAE_CHANNELS)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=VAE_CHANNELS,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
        mid_block_add_attention=False,
    )


def build_unet() -> UNet2DConditionModel:
    """Cross-attention on the 8x8 and the 4x4 level."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=IMAGE_SIZE // 2 ** (len(VAE_CHANNELS) - 1),
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D",) * len(UNET_CHANNELS),
        up_block_types=("CrossAttnUpBlock2D",) * len(UNET_CHANNELS),
        block_out_channels=UNET_CHANNELS,
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        # The config key says dimension; the class reads it as the number of heads.
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """The scheduler configuration of Stable Diffusion v1."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type="epsilon",
    )


def build_pipeline() -> StableDiffusionPipeline:
    """The whole pipeline with fresh weights from torch's current random state."""
    from diffusers import StableDiffusionPipeline

    tokenizer = build_tokenizer()
    return StableDiffusionPipeline(
        vae=build_vae(),
        text_encoder=build_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=build_unet(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )
