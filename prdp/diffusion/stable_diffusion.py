"""Stable Diffusion 1.x and 2.x from a folder in diffusers format: the policy whose network learns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.diffusion.adapters import check_adapters, init_adapter_problems
from prdp.diffusion.conditions import Conditions
from prdp.diffusion.diffusers_policy import DTYPES, DiffusersPolicy, placed
from prdp.diffusion.image_size import KEYS, check_side, picture_size, vae_factor
from prdp.diffusion.libraries import quiet
from prdp.diffusion.precision import upcast
from prdp.diffusion.process import Process
from prdp.diffusion.usage import usage_text
from prdp.diffusion.variance_preserving import VariancePreserving
from prdp.support.errors import StartError

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

_PIPELINE_UNIT = 8
"""Pixels that diffusers' pipeline wants sides to be multiples of, whatever the VAE."""


class StableDiffusionPolicy(DiffusersPolicy):
    """One CLIP text encoder, a UNet that learns, and a VAE; see `DiffusersPolicy`.

    `scheduler_config` is that of the DDIM scheduler that diffusers makes of the checkpoint's.
    """

    NETWORK = "unet"
    FROZEN = ("vae", "text_encoder")

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
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
    ) -> StableDiffusionPolicy:
        """Load the pipeline that `model.path` names; the embedded one and Stable Diffusion go the same way."""
        pipeline = load_pipeline(model, only_network=only_network)
        return cls(pipeline, model, learner, seed=seed, keep_reference=keep_reference)

    @staticmethod
    def check(model: ModelConfig) -> None:
        """The folder is whole, its components are ones that are computed exactly, and adapters fit the UNet."""
        from prdp.diffusion.model_components import check_components, empty_unet
        from prdp.diffusion.model_folder import check_model

        where = f"model.path={model.path}"
        if model.max_sequence_length is not None:
            raise StartError(
                f"model.max_sequence_length={model.max_sequence_length}: must be null for model.family={model.family}"
            )
        folder = check_model(model.path, model.variant, model.revision)
        if folder is not None:
            check_components(where, folder, model.variant)
            _latent_shape_in(folder, model)
            if model.adapters:
                quiet()
                from diffusers import StableDiffusionPipeline

                check_adapters(model, empty_unet(folder), StableDiffusionPipeline, "unet")

    @staticmethod
    def learner_problems(model: ModelConfig, learner: LearnerConfig) -> list[str]:
        """Layers that take no adapter, and networks that the JAX twin does not compute."""
        from prdp.diffusion.lora_targets import lora_target_problems
        from prdp.diffusion.model_components import empty_unet
        from prdp.diffusion.model_folder import check_model

        where = f"model.path={model.path}"
        folder = check_model(model.path, model.variant, model.revision)
        if folder is None:
            return []
        problems, network = [], None
        if learner.mode == "lora":
            network = empty_unet(folder)
            problems += lora_target_problems(network, learner.lora_targets)
            if learner.init_adapter is not None and not problems:
                quiet()
                from diffusers import StableDiffusionPipeline

                problems += init_adapter_problems(learner, network, StableDiffusionPipeline, "unet")
        if learner.framework == "jax":
            from prdp.diffusion.jax_unet import UNet

            unet = (network or empty_unet(folder)).config
            try:
                UNet(dict(unet))
            except ValueError as error:
                problems.append(f"learner.framework=jax: {where}: {error}")
            problems += _jax_size_problems(folder, model)
        return problems

    @staticmethod
    def process_of(model: ModelConfig) -> Process:
        """Of the checkpoint's scheduler, which is read without loading weights."""
        from prdp.diffusion.effective_scheduler import effective_scheduler
        from prdp.diffusion.model_folder import read_component

        quiet()
        return VariancePreserving(effective_scheduler(read_component(_folder(model), "scheduler")).config)

    @staticmethod
    def latent_shape_of(model: ModelConfig) -> tuple[int, ...]:
        """Of the folder's configurations and the size that is asked for."""
        return _latent_shape_in(_folder(model), model)

    @staticmethod
    def picture_size_of(model: ModelConfig) -> tuple[int, int]:
        """Likewise."""
        folder = _folder(model)
        return picture_size(_latent_shape_in(folder, model), _vae(folder))

    def usage(self, model: ModelConfig, sampler: SamplerConfig, mode: str, weights: Path, prompt: str) -> str:
        """A program around `StableDiffusionPipeline`."""
        return usage_text(model, sampler, self.scheduler_config, self.picture_size, mode, weights, prompt)

    def _whole_pipeline(self) -> StableDiffusionPipeline:
        return self.pipeline if self.pipeline.vae is not None else load_pipeline(self._model, unet=self.network)

    def _encode(self, prompts: Sequence[str]) -> Mapping[str, torch.Tensor]:
        """`states` [B, tokens, width]; prompts are cut at the text encoder's length."""
        tokenizer, text_encoder = self.pipeline.tokenizer, self.pipeline.text_encoder
        tokens = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=_text_length(tokenizer, text_encoder),
            truncation=True,
            return_tensors="pt",
        ).to(self.device)
        masked = getattr(text_encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask if masked else None
        # Half precision would give a prompt other states in another batch, and so another log-ratio.
        with upcast(text_encoder):
            return {"states": text_encoder(tokens.input_ids, attention_mask=mask).last_hidden_state}

    def _predict(
        self, network: torch.nn.Module, latents: torch.Tensor, times: torch.Tensor, conditions: Conditions
    ) -> torch.Tensor:
        output: torch.Tensor = network(
            latents, times.long(), encoder_hidden_states=conditions.fields["states"], return_dict=False
        )[0]
        return output


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
            check_side(key, pixels, math.lcm(factor, _PIPELINE_UNIT))
    return int(unet["in_channels"]), int(height), int(width)


def load_pipeline(
    model: ModelConfig, *, only_network: bool = False, unet: Any = None
) -> StableDiffusionPipeline:
    """The diffusers pipeline of `model`, on its device and in its precision.

    Its scheduler is the DDIM scheduler that samples it here, whatever class the folder names, so that a folder saved
    from it says all of how it is sampled.

    Args:
        only_network: leave out text encoder, tokenizer and VAE.
        unet: to be used instead of the folder's.

    Raises:
        ValueError: no such folder, files missing in it, or a component that is not computed exactly; names them.
    """
    quiet()
    from diffusers import StableDiffusionPipeline

    from prdp.diffusion.effective_scheduler import effective_scheduler
    from prdp.diffusion.model_components import check_components
    from prdp.diffusion.model_folder import check_model, fetch_model, read_component

    where = f"model.path={model.path}"
    # What is refused is refused before a download of gigabytes.
    check_model(model.path, model.variant, model.revision)
    folder = fetch_model(model.path, model.variant, model.revision)
    check_model(str(folder), model.variant)
    check_components(where, folder, model.variant)
    others: dict[str, Any] = {} if unet is None else {"unet": unet}
    if only_network:
        others |= dict.fromkeys(("vae", "text_encoder", "tokenizer"))
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(
            folder,
            **others,
            variant=model.variant,
            dtype=DTYPES[model.dtype],
            scheduler=effective_scheduler(read_component(folder, "scheduler")),
            safety_checker=None,
            requires_safety_checker=False,
            use_safetensors=True,
        )
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError) as error:
        raise ValueError(f"{where}: {folder} cannot be loaded as a Stable Diffusion pipeline: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    return placed(pipeline, model)


def _folder(model: ModelConfig) -> Path:
    from prdp.diffusion.model_folder import check_model

    folder = check_model(model.path, model.variant, model.revision)
    assert folder is not None, "the world of mixtures is of another family"
    return folder


def _vae(folder: Path) -> dict[str, Any]:
    from prdp.diffusion.model_components import component_config

    return component_config(folder, "vae", "AutoencoderKL")


def _latent_shape_in(folder: Path, model: ModelConfig) -> tuple[int, int, int]:
    from prdp.diffusion.model_components import component_config

    unet = component_config(folder, "unet", "UNet2DConditionModel")
    return latent_shape(unet, _vae(folder), (model.height, model.width))


def _jax_size_problems(folder: Path, model: ModelConfig) -> list[str]:
    """Sides that cannot be halved at every level: the JAX twin does not round."""
    from prdp.diffusion.model_components import component_config

    unet = component_config(folder, "unet", "UNet2DConditionModel")
    halves = 2 ** (len(unet["block_out_channels"]) - 1)
    unit, problems = math.lcm(halves * vae_factor(_vae(folder)), _PIPELINE_UNIT), []
    for key, given, side in zip(KEYS, (model.height, model.width), _latent_shape_in(folder, model)[1:], strict=True):
        if not side % halves:
            continue
        if given is None:
            problems.append(
                f"learner.framework=jax: model.path={model.path}: unet sample_size={unet['sample_size']}: must divide "
                f"by {halves}"
            )
            continue
        try:
            check_side(key, given, unit)
        except StartError as error:
            problems.append(f"learner.framework=jax: {error}")
    return list(dict.fromkeys(problems))


def _text_length(tokenizer: Any, text_encoder: Any) -> int:
    """Tokens of a prompt: the tokenizer's length, bounded by the text encoder's, as a tokenizer may name none."""
    return min(int(tokenizer.model_max_length), int(text_encoder.config.max_position_embeddings))
