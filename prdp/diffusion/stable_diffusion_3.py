"""Stable Diffusion 3 and 3.5 from a folder in diffusers format; T5 may be absent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.diffusion.adapters import check_adapters, init_adapter_problems
from prdp.diffusion.conditions import Conditions
from prdp.diffusion.diffusers_policy import DTYPES, DiffusersPolicy, placed
from prdp.diffusion.flow_usage import flow_usage_text
from prdp.diffusion.image_size import KEYS, check_side, picture_size, vae_factor
from prdp.diffusion.libraries import quiet
from prdp.diffusion.precision import upcast
from prdp.diffusion.process import Process
from prdp.diffusion.rectified_flow import SCHEDULER, RectifiedFlow
from prdp.support.errors import StartError

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline

T5_TOKENS = 256
"""Rows of T5's states, or of zeros without T5, that diffusers' pipeline appends unless told another number."""
_MOST_T5_TOKENS = 512


class StableDiffusion3Policy(DiffusersPolicy):
    """Two CLIP text encoders and perhaps T5, a transformer that learns, and a VAE; see `DiffusersPolicy`."""

    NETWORK = "transformer"
    FROZEN = ("vae", "text_encoder", "text_encoder_2", "text_encoder_3")

    def __init__(
        self,
        pipeline: StableDiffusion3Pipeline,
        model: ModelConfig,
        learner: LearnerConfig,
        *,
        seed: int = 0,
        keep_reference: bool = True,
    ) -> None:
        self._max_sequence_length = model.max_sequence_length or T5_TOKENS
        super().__init__(
            pipeline,
            model,
            self.process_of(model),
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
    ) -> StableDiffusion3Policy:
        """Load the pipeline that `model.path` names."""
        pipeline = load_pipeline(model, only_network=only_network)
        return cls(pipeline, model, learner, seed=seed, keep_reference=keep_reference)

    @staticmethod
    def check(model: ModelConfig) -> None:
        """The folder is whole, its weights fit their configurations, and the size and adapters fit the network."""
        from prdp.diffusion.model_components import weight_problems
        from prdp.diffusion.model_folder import weight_files

        folder = _checked(model)
        _latent_shape_in(folder, model)
        problems = [
            f"model.path={model.path}: {folder / name}: {problem}"
            for name in ("transformer", "vae")
            for problem in weight_problems(_empty(folder, name), weight_files(folder, name, model.variant))
        ]
        if problems:
            raise StartError("\n".join(problems))
        if model.adapters:
            quiet()
            from diffusers import StableDiffusion3Pipeline

            check_adapters(model, _empty(folder, "transformer"), StableDiffusion3Pipeline, "transformer")

    @staticmethod
    def learner_problems(model: ModelConfig, learner: LearnerConfig) -> list[str]:
        """Layers that take no adapter; the JAX twin computes no transformers."""
        from prdp.diffusion.lora_targets import lora_target_problems

        problems = []
        if learner.framework != "torch":
            problems.append(f"learner.framework={learner.framework}: must be torch for model.family={model.family}")
        if learner.mode == "lora":
            network = _empty(_checked(model), "transformer")
            problems += lora_target_problems(network, learner.lora_targets)
            if learner.init_adapter is not None and not problems:
                quiet()
                from diffusers import StableDiffusion3Pipeline

                problems += init_adapter_problems(learner, network, StableDiffusion3Pipeline, "transformer")
        return problems

    @staticmethod
    def process_of(model: ModelConfig) -> Process:
        """Of the folder's scheduler and sizes, which are read without loading weights."""
        folder = _checked(model)
        tokens = image_tokens(_config(folder, "transformer"), _latent_shape_in(folder, model))
        return RectifiedFlow(_config(folder, "scheduler"), tokens=tokens)

    @staticmethod
    def latent_shape_of(model: ModelConfig) -> tuple[int, ...]:
        """Of the folder's configurations and the size that is asked for."""
        return _latent_shape_in(_checked(model), model)

    @staticmethod
    def picture_size_of(model: ModelConfig) -> tuple[int, int]:
        """Likewise."""
        folder = _checked(model)
        return picture_size(_latent_shape_in(folder, model), _config(folder, "vae"))

    def usage(self, model: ModelConfig, sampler: SamplerConfig, mode: str, weights: Path, prompt: str) -> str:
        """A program around `StableDiffusion3Pipeline`."""
        table = self.process.transitions(sampler)
        return flow_usage_text(
            model, sampler, self.scheduler_config, table, self.picture_size, mode, weights, prompt
        )

    def _whole_pipeline(self) -> StableDiffusion3Pipeline:
        return self.pipeline if self.pipeline.vae is not None else load_pipeline(self._model, transformer=self.network)

    def _encode(self, prompts: Sequence[str]) -> Mapping[str, torch.Tensor]:
        """`states` [B, tokens, joint_attention_dim] and `pooled` [B, pooled_projection_dim], float32.

        Of the pipeline's own `encode_prompt`: the states before the last layer of both CLIP encoders side by side, then
        those of T5 below, cut at `max_sequence_length`.
        """
        clip = (self.pipeline.text_encoder, self.pipeline.text_encoder_2)
        # Half precision would give a prompt other states in another batch, and so another log-ratio.
        with upcast(*clip):
            states, _, pooled, _ = self.pipeline.encode_prompt(
                prompt=list(prompts),
                prompt_2=None,
                prompt_3=None,
                device=self.device,
                do_classifier_free_guidance=False,
                max_sequence_length=self._max_sequence_length,
            )
        return {"states": states.float(), "pooled": pooled.float()}

    def _predict(
        self, network: torch.nn.Module, latents: torch.Tensor, times: torch.Tensor, conditions: Conditions
    ) -> torch.Tensor:
        dtype = next(network.parameters()).dtype if self._in_float32 else latents.dtype
        output: torch.Tensor = network(
            hidden_states=latents.to(dtype),
            timestep=1000.0 * times,
            encoder_hidden_states=conditions.fields["states"],
            pooled_projections=conditions.fields["pooled"],
            return_dict=False,
        )[0]
        return output


def latent_shape(
    transformer: Mapping[str, Any], vae: Mapping[str, Any], size: tuple[int | None, int | None]
) -> tuple[int, int, int]:
    """(C, h, w) of the latents of images of `size`, height and width in pixels; None takes the transformer's own.

    Raises:
        StartError: the VAE or the patches cannot take the size, or the transformer has no positions for it; names the
            nearest that fit.
    """
    factor = vae_factor(vae)
    unit, sides = factor * int(transformer["patch_size"]), []
    for key, value in zip(KEYS, size, strict=True):
        pixels = int(transformer["sample_size"]) * factor if value is None else value
        check_side(key, pixels, unit, int(transformer["pos_embed_max_size"]) * unit)
        sides.append(pixels // factor)
    return int(transformer["in_channels"]), sides[0], sides[1]


def _latent_shape_in(folder: Path, model: ModelConfig) -> tuple[int, int, int]:
    return latent_shape(_config(folder, "transformer"), _config(folder, "vae"), (model.height, model.width))


def image_tokens(transformer: Mapping[str, Any], shape: tuple[int, int, int]) -> int:
    """How many patches the transformer sees of latents of a shape."""
    patch = int(transformer["patch_size"])
    return (shape[1] // patch) * (shape[2] // patch)


def load_pipeline(
    model: ModelConfig, *, only_network: bool = False, transformer: Any = None
) -> StableDiffusion3Pipeline:
    """The diffusers pipeline of `model`, on its device and in its precision.

    Args:
        only_network: leave out text encoders, tokenizers and VAE.
        transformer: to be used instead of the folder's.

    Raises:
        StartError: no such folder, files missing in it, or a component that is not computed exactly; names them.
        ValueError: diffusers cannot load it.
    """
    quiet()
    from diffusers import StableDiffusion3Pipeline

    from prdp.diffusion.model_folder import absent_parts, fetch_model
    from prdp.diffusion.pipeline_formats import STABLE_DIFFUSION_3

    _checked(model)
    folder = fetch_model(model.path, model.variant, model.revision, STABLE_DIFFUSION_3)
    others: dict[str, Any] = dict.fromkeys(absent_parts(folder, STABLE_DIFFUSION_3))
    if only_network:
        parts = (*STABLE_DIFFUSION_3.components, *STABLE_DIFFUSION_3.tokenizers)
        others = dict.fromkeys(part for part in parts if part != "transformer")
    if transformer is not None:
        others["transformer"] = transformer
    try:
        pipeline = StableDiffusion3Pipeline.from_pretrained(
            folder, variant=model.variant, dtype=DTYPES[model.dtype], use_safetensors=True, **others
        )
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError) as error:
        raise ValueError(
            f"model.path={model.path}: {folder} cannot be loaded as a Stable Diffusion 3 pipeline: {error}"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return placed(pipeline, model)


def _checked(model: ModelConfig) -> Path:
    """The whole folder of a model, with a scheduler that is computed."""
    from prdp.diffusion.model_folder import check_model
    from prdp.diffusion.pipeline_formats import STABLE_DIFFUSION_3

    folder = check_model(model.path, model.variant, model.revision, STABLE_DIFFUSION_3)
    assert folder is not None
    scheduler = _config(folder, "scheduler")
    found = scheduler.get("_class_name", SCHEDULER)
    if found != SCHEDULER:
        raise StartError(f"model.path={model.path}: {folder / 'scheduler'}: _class_name={found}: must be {SCHEDULER}")
    length = model.max_sequence_length
    if length is not None and not 1 <= length <= _MOST_T5_TOKENS:
        raise StartError(f"model.max_sequence_length={length}: must be from 1 to {_MOST_T5_TOKENS}")
    return folder


def _empty(folder: Path, name: str) -> torch.nn.Module:
    """A component's network on the meta device, from its configuration alone."""
    import diffusers

    from prdp.diffusion.pipeline_formats import STABLE_DIFFUSION_3

    try:
        with torch.device("meta"):
            network: torch.nn.Module = getattr(diffusers, STABLE_DIFFUSION_3.components[name]).from_config(
                _config(folder, name)
            )
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise StartError(f"{folder / name}: diffusers makes no network of it: {error}") from error
    return network


def _config(folder: Path, name: str) -> dict[str, Any]:
    """A component's configuration with the defaults of its class."""
    from prdp.diffusion.model_components import component_config

    classes = {"transformer": "SD3Transformer2DModel", "vae": "AutoencoderKL", "scheduler": SCHEDULER}
    return component_config(folder, name, classes[name])
