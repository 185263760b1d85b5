"""What policies of the UNet families have in common: CLIP text encoders, a UNet that learns, a VAE, one process."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.diffusion.adapters import check_adapters, init_adapter_problems
from prdp.diffusion.conditions import Conditions
from prdp.diffusion.diffusers_policy import DTYPES, DiffusersPolicy, placed
from prdp.diffusion.image_size import KEYS, check_side, picture_size, vae_factor
from prdp.diffusion.libraries import quiet
from prdp.diffusion.pipeline_formats import STABLE_DIFFUSION, PipelineFormat
from prdp.diffusion.process import Process
from prdp.diffusion.usage import usage_text
from prdp.diffusion.variance_preserving import VariancePreserving
from prdp.support.errors import StartError

PIPELINE_UNIT = 8
"""Pixels that diffusers' pipelines want sides to be multiples of, whatever the VAE."""


class UNetPolicy(DiffusersPolicy, ABC):
    """A folder of `FORMAT`; a family adds how prompts are encoded and the UNet is called. See `DiffusersPolicy`.

    `scheduler_config` is that of the scheduler that diffusers makes of the checkpoint's: LCMScheduler where the folder
    names it, else DDIM's.
    """

    NETWORK = "unet"
    FORMAT: ClassVar[PipelineFormat]

    def __init__(
        self,
        pipeline: Any,
        model: ModelConfig,
        learner: LearnerConfig,
        *,
        seed: int = 0,
        keep_reference: bool = True,
    ) -> None:
        self.unet = pipeline.unet
        super().__init__(
            pipeline,
            model,
            VariancePreserving(pipeline.scheduler.config),
            self.latent_shape_of(model),
            self.picture_size_of(model),
            learner,
            seed=seed,
            keep_reference=keep_reference,
        )

    @classmethod
    def load(
        cls,
        model: ModelConfig,
        learner: LearnerConfig,
        *,
        seed: int = 0,
        keep_reference: bool = True,
        only_network: bool = False,
    ) -> UNetPolicy:
        """Load the pipeline that `model.path` names; the embedded one and released ones go the same way."""
        pipeline = load_pipeline(model, cls.FORMAT, only_network=only_network)
        return cls(pipeline, model, learner, seed=seed, keep_reference=keep_reference)

    @classmethod
    def check(cls, model: ModelConfig) -> None:
        """The folder is whole, its components are ones that are computed exactly, and adapters fit the UNet."""
        from prdp.diffusion.model_components import check_components, empty_unet
        from prdp.diffusion.model_folder import check_model

        if model.max_sequence_length is not None:
            raise StartError(
                f"model.max_sequence_length={model.max_sequence_length}: must be null for model.family={model.family}"
            )
        folder = check_model(model.path, model.variant, model.revision, cls.FORMAT)
        if folder is not None:
            check_components(f"model.path={model.path}", folder, model.variant, cls.FORMAT)
            _latent_shape_in(folder, model)
            if model.adapters:
                check_adapters(model, empty_unet(folder), _pipeline_class(cls.FORMAT), "unet")

    @classmethod
    def learner_problems(cls, model: ModelConfig, learner: LearnerConfig) -> list[str]:
        """Layers that take no adapter."""
        from prdp.diffusion.lora_targets import lora_target_problems
        from prdp.diffusion.model_components import empty_unet
        from prdp.diffusion.model_folder import check_model

        folder = check_model(model.path, model.variant, model.revision, cls.FORMAT)
        if folder is None or learner.mode != "lora":
            return []
        network = empty_unet(folder)
        problems = lora_target_problems(network, learner.lora_targets)
        if learner.init_adapter is not None and not problems:
            problems += init_adapter_problems(learner, network, _pipeline_class(cls.FORMAT), "unet")
        return problems

    @classmethod
    def process_of(cls, model: ModelConfig) -> Process:
        """Of the checkpoint's scheduler, which is read without loading weights."""
        from prdp.diffusion.effective_scheduler import effective_scheduler
        from prdp.diffusion.model_folder import read_component

        quiet()
        config = read_component(cls._folder(model), "scheduler")
        return VariancePreserving(effective_scheduler(config, cls.FORMAT).config)

    @classmethod
    def latent_shape_of(cls, model: ModelConfig) -> tuple[int, ...]:
        """Of the folder's configurations and the size that is asked for."""
        return _latent_shape_in(cls._folder(model), model)

    @classmethod
    def picture_size_of(cls, model: ModelConfig) -> tuple[int, int]:
        """Likewise."""
        folder = cls._folder(model)
        return picture_size(_latent_shape_in(folder, model), vae_config(folder))

    def usage(self, model: ModelConfig, sampler: SamplerConfig, mode: str, weights: Path, prompt: str) -> str:
        """A program around the pipeline of `FORMAT`."""
        return usage_text(
            model, sampler, self.scheduler_config, self.picture_size, mode, weights, prompt, self.FORMAT
        )

    @property
    def embeds_guidance(self) -> bool:
        """Latent consistency models do, by `time_cond_proj_dim` of their UNet."""
        return self.unet.config.time_cond_proj_dim is not None

    def _with_guidance(self, conditions: Conditions, guidance_scale: float) -> Conditions:
        """With `guidance` [B, time_cond_proj_dim], the embedding of w - 1 by diffusers' pipeline."""
        scales = torch.full((len(conditions),), guidance_scale - 1.0)
        embedded = self.pipeline.get_guidance_scale_embedding(scales, self.unet.config.time_cond_proj_dim)
        return replace(conditions, fields={**conditions.fields, "guidance": embedded.to(self.device)})

    @classmethod
    def _folder(cls, model: ModelConfig) -> Path:
        from prdp.diffusion.model_folder import check_model

        folder = check_model(model.path, model.variant, model.revision, cls.FORMAT)
        assert folder is not None, "the world of mixtures is of another family"
        return folder

    def _whole_pipeline(self) -> Any:
        if self.pipeline.vae is not None:
            return self.pipeline
        return load_pipeline(self._model, self.FORMAT, unet=self.network)

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


def load_pipeline(
    model: ModelConfig, kind: PipelineFormat = STABLE_DIFFUSION, *, only_network: bool = False, unet: Any = None
) -> Any:
    """The diffusers pipeline of `model`, on its device and in its precision.

    Its scheduler is LCMScheduler where the folder names it, else the DDIM scheduler that samples it here, so that a
    folder saved from it says all of how it is sampled.

    Args:
        kind: of the folder.
        only_network: leave out text encoders, tokenizers and VAE.
        unet: to be used instead of the folder's.

    Raises:
        ValueError: no such folder, files missing in it, or a component that is not computed exactly; names them.
    """
    from prdp.diffusion.effective_scheduler import effective_scheduler
    from prdp.diffusion.model_components import check_components
    from prdp.diffusion.model_folder import check_model, fetch_model, read_component

    where = f"model.path={model.path}"
    # What is refused is refused before a download of gigabytes.
    check_model(model.path, model.variant, model.revision, kind)
    folder = fetch_model(model.path, model.variant, model.revision, kind)
    check_model(str(folder), model.variant, kind=kind)
    check_components(where, folder, model.variant, kind)
    others: dict[str, Any] = {} if unet is None else {"unet": unet}
    if only_network:
        others |= dict.fromkeys(part for part in (*kind.components, *kind.tokenizers) if part != "unet")
    if "safety_checker" in kind.arguments:
        others["requires_safety_checker"] = False
    try:
        pipeline = _pipeline_class(kind).from_pretrained(
            folder,
            **others,
            **kind.arguments,
            variant=model.variant,
            dtype=DTYPES[model.dtype],
            scheduler=effective_scheduler(read_component(folder, "scheduler"), kind),
            use_safetensors=True,
        )
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError) as error:
        raise ValueError(f"{where}: {folder} cannot be loaded as a {kind.pipeline}: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    return placed(pipeline, model)


def vae_config(folder: Path) -> dict[str, Any]:
    """The configuration of a folder's VAE, with defaults."""
    from prdp.diffusion.model_components import component_config

    return component_config(folder, "vae", "AutoencoderKL")


def unet_config(folder: Path) -> dict[str, Any]:
    """The configuration of a folder's UNet, with defaults."""
    from prdp.diffusion.model_components import component_config

    return component_config(folder, "unet", "UNet2DConditionModel")


def text_length(tokenizer: Any, text_encoder: Any) -> int:
    """Tokens of a prompt: the tokenizer's length, bounded by the text encoder's, as a tokenizer may name none."""
    return min(int(tokenizer.model_max_length), int(text_encoder.config.max_position_embeddings))


def _latent_shape_in(folder: Path, model: ModelConfig) -> tuple[int, int, int]:
    return latent_shape(unet_config(folder), vae_config(folder), (model.height, model.width))


def _pipeline_class(kind: PipelineFormat) -> Any:
    quiet()
    import diffusers

    return getattr(diffusers, kind.pipeline)
