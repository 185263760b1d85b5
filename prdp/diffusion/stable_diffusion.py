"""Stable Diffusion 1.x and 2.x from a folder in diffusers format: the policy whose network learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.diffusion.conditions import Conditions
from prdp.diffusion.diffusers_policy import DTYPES, DiffusersPolicy, device_of
from prdp.diffusion.precision import upcast
from prdp.diffusion.process import Process
from prdp.diffusion.usage import usage_text
from prdp.diffusion.variance_preserving import VariancePreserving
from prdp.support.errors import StartError

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


class StableDiffusionPolicy(DiffusersPolicy):
    """One CLIP text encoder, a UNet that learns, and a VAE; see `DiffusersPolicy`.

    `scheduler_config` is that of the DDIM scheduler that diffusers makes of the checkpoint's.
    """

    NETWORK = "unet"
    FROZEN = ("vae", "text_encoder")

    def __init__(
        self, pipeline: StableDiffusionPipeline, learner: LearnerConfig, *, seed: int = 0, keep_reference: bool = True
    ) -> None:
        self.unet = pipeline.unet
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        shape = (int(self.unet.config.in_channels), int(height), int(width))
        process = VariancePreserving(pipeline.scheduler.config)
        super().__init__(pipeline, process, shape, learner, seed=seed, keep_reference=keep_reference)

    @classmethod
    def load(
        cls, model: ModelConfig, learner: LearnerConfig, *, seed: int = 0, keep_reference: bool = True
    ) -> StableDiffusionPolicy:
        """Load the pipeline that `model.path` names; the embedded one and Stable Diffusion go the same way."""
        return cls(load_pipeline(model), learner, seed=seed, keep_reference=keep_reference)

    @staticmethod
    def check(model: ModelConfig) -> None:
        """The folder is whole, and its components are ones that are computed exactly."""
        from prdp.diffusion.model_components import check_components
        from prdp.diffusion.model_folder import check_model

        where = f"model.path={model.path}"
        for key in ("height", "width", "max_sequence_length"):
            if getattr(model, key) is not None:
                raise StartError(f"model.{key}={getattr(model, key)}: must be null for model.family={model.family}")
        folder = check_model(model.path, model.variant, model.revision)
        if folder is not None:
            check_components(where, folder, model.variant)

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
        if learner.framework == "jax":
            from prdp.diffusion.jax_unet import UNet

            unet = (network or empty_unet(folder)).config
            try:
                UNet(dict(unet))
            except ValueError as error:
                problems.append(f"learner.framework=jax: {where}: {error}")
            sides = [unet.sample_size] if isinstance(unet.sample_size, int) else list(unet.sample_size)
            factor = 2 ** (len(unet.block_out_channels) - 1)
            if any(side % factor for side in sides):
                found = f"unet sample_size={unet.sample_size}: must divide by {factor}"
                problems.append(f"learner.framework=jax: {where}: {found}")
        return problems

    @staticmethod
    def process_of(model: ModelConfig) -> Process:
        """Of the checkpoint's scheduler, which is read without loading weights."""
        from prdp.diffusion.effective_scheduler import effective_scheduler
        from prdp.diffusion.libraries import quiet
        from prdp.diffusion.model_folder import check_model, read_component

        quiet()
        folder = check_model(model.path, model.variant, model.revision)
        assert folder is not None, "a hub model that is not fetched yet has no scheduler to read"
        return VariancePreserving(effective_scheduler(read_component(folder, "scheduler")).config)

    def usage(self, model: ModelConfig, sampler: SamplerConfig, mode: str, weights: Path, prompt: str) -> str:
        """A program around `StableDiffusionPipeline`."""
        return usage_text(model, sampler, self.scheduler_config, mode, weights, prompt)

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


def load_pipeline(model: ModelConfig) -> StableDiffusionPipeline:
    """The diffusers pipeline of `model`, on its device and in its precision.

    Its scheduler is the DDIM scheduler that samples it here, whatever class the folder names, so that a folder saved
    from it says all of how it is sampled.

    Raises:
        ValueError: no such folder, files missing in it, or a component that is not computed exactly; names them.
    """
    from prdp.diffusion.libraries import quiet

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
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(
            folder,
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
    return pipeline.to(device_of(model))


def _text_length(tokenizer: Any, text_encoder: Any) -> int:
    """Tokens of a prompt: the tokenizer's length, bounded by the text encoder's, as a tokenizer may name none."""
    return min(int(tokenizer.model_max_length), int(text_encoder.config.max_position_embeddings))
