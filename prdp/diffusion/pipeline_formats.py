"""What the folders of the families' diffusers pipelines hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CLIP_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
T5_TOKENIZERS = ("T5Tokenizer", "T5TokenizerFast")
LATENT_CONSISTENCY = "LatentConsistencyModelPipeline"
"""Of models that are told the guidance, and drawn in few steps."""
V_PREDICTION, ZERO_SNR = "v_pred", "ztsnr"
"""Tensors by which a file of Stable Diffusion XL says that its network predicts v, and that the last level is noise
alone."""
QWEN_TOKENIZERS = ("Qwen2Tokenizer", "Qwen2TokenizerFast")


@dataclass(frozen=True)
class PipelineFormat:
    """The parts of a pipeline's folder.

    Attributes:
        pipeline: class that model_index.json names, and that folders are loaded and written as.
        family: `model.family` of such folders.
        words: what it is of, for messages.
        components: parts with weights, and the classes that are computed.
        tokenizers: folder -> classes that are allowed.
        optional: parts that model_index.json may say are absent.
        module: the name that diffusers gives to the pipeline's own module in model_index.json.
        arguments: of its `from_pretrained`, so that pictures come out as they are decoded.
        addition: addition_embed_type of its UNet, what this is given beside prompt and time; None for nothing.
        latent_statistics: whether its pipeline takes latents_mean and latents_std of the VAE.
        text_tokens: of `model.max_sequence_length`, the pipeline's own number and the most that it takes, None for any;
            None where a prompt's length is the tokenizer's.
        chat: whether prompts go through the tokenizer's chat template.
        single_file: whether checkpoints in one file are taken.
        attention_backends: whether its network in diffusers takes another backend for its attention.
        others: classes that model_index.json may name too, since `pipeline` draws the same pictures.
    """

    pipeline: str
    family: str
    words: str
    components: Mapping[str, str]
    tokenizers: Mapping[str, tuple[str, ...]]
    optional: tuple[str, ...] = ()
    module: str = "stable_diffusion"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    addition: str | None = None
    latent_statistics: bool = False
    text_tokens: tuple[int, int | None] | None = None
    chat: bool = False
    single_file: bool = False
    attention_backends: bool = False
    others: tuple[str, ...] = ()

    @property
    def network(self) -> str:
        """The component that learns."""
        return "unet" if "unet" in self.components else "transformer"

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """Components that read prompts, in the order of their tokenizers."""
        return tuple(name for name in self.components if name.startswith("text_encoder"))


STABLE_DIFFUSION = PipelineFormat(
    pipeline="StableDiffusionPipeline",
    family="stable_diffusion",
    words="Stable Diffusion 1.x and 2.x and their fine-tunes, text to image",
    components={"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"},
    tokenizers={"tokenizer": CLIP_TOKENIZERS},
    arguments={"safety_checker": None},
    single_file=True,
    others=(LATENT_CONSISTENCY,),
)
STABLE_DIFFUSION_XL = PipelineFormat(
    pipeline="StableDiffusionXLPipeline",
    family="stable_diffusion_xl",
    words="Stable Diffusion XL and its fine-tunes, text to image, without the refiner",
    components={
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "CLIPTextModelWithProjection",
    },
    tokenizers={"tokenizer": CLIP_TOKENIZERS, "tokenizer_2": CLIP_TOKENIZERS},
    module="stable_diffusion_xl",
    arguments={"add_watermarker": False},
    addition="text_time",
    latent_statistics=True,
    single_file=True,
)
STABLE_DIFFUSION_3 = PipelineFormat(
    pipeline="StableDiffusion3Pipeline",
    family="stable_diffusion_3",
    words="Stable Diffusion 3 and 3.5",
    components={
        "transformer": "SD3Transformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "text_encoder_3": "T5EncoderModel",
    },
    tokenizers={"tokenizer": CLIP_TOKENIZERS, "tokenizer_2": CLIP_TOKENIZERS, "tokenizer_3": T5_TOKENIZERS},
    optional=("text_encoder_3", "tokenizer_3"),
    module="stable_diffusion_3",
    text_tokens=(256, 512),
)
FLUX = PipelineFormat(
    pipeline="FluxPipeline",
    family="flux",
    words="FLUX.1-dev, FLUX.1-schnell and their fine-tunes, text to image",
    components={
        "transformer": "FluxTransformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "T5EncoderModel",
    },
    tokenizers={"tokenizer": CLIP_TOKENIZERS, "tokenizer_2": T5_TOKENIZERS},
    module="flux",
    text_tokens=(512, 512),
    attention_backends=True,
)
Z_IMAGE = PipelineFormat(
    pipeline="ZImagePipeline",
    family="z_image",
    words="Z-Image, Z-Image-Turbo and their fine-tunes, text to image",
    components={
        "transformer": "ZImageTransformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "Qwen3Model",
    },
    tokenizers={"tokenizer": QWEN_TOKENIZERS},
    module="z_image",
    text_tokens=(512, None),
    chat=True,
    attention_backends=True,
)
FORMATS = (STABLE_DIFFUSION, STABLE_DIFFUSION_XL, STABLE_DIFFUSION_3, FLUX, Z_IMAGE)
