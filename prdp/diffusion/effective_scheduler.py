"""What a checkpoint's scheduler configuration comes to for the samplers here, as diffusers' own classes read it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prdp.config import DIFFUSION_SPACINGS, ModelConfig, SamplerConfig
from prdp.diffusion.pipeline_formats import FORMATS, STABLE_DIFFUSION, PipelineFormat

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, LCMScheduler

BETA_SCHEDULES = ("linear", "scaled_linear")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
# Of the classes that diffusers lists as interchangeable, those with a preconditioning of their own.
_OTHER_PROCESSES = ("EDMEulerScheduler",)
CONSISTENCY = "LCMScheduler"
"""Of models that were distilled to few steps. It is not among the interchangeable ones, as its steps are others; the
process is the same."""
_BETAS = ("beta_start", "beta_end", "beta_schedule")
_PROCESS = (
    "num_train_timesteps", *_BETAS, "trained_betas", "prediction_type", "rescale_betas_zero_snr", "set_alpha_to_one",
    "steps_offset",
)  # fmt: skip


def effective_scheduler(
    config: Mapping[str, Any], kind: PipelineFormat = STABLE_DIFFUSION
) -> DDIMScheduler | LCMScheduler:
    """The scheduler of a checkpoint whose scheduler has this configuration: DDIM's, or that of consistency models.

    Keys that the configuration lacks get the defaults of `from_config` of that class, whatever class it names; then the
    constructor of `StableDiffusionPipeline` sets steps_offset to 1 and clip_sample to false, as it does for every
    checkpoint. Those of other pipelines leave both; latents are never clipped here.

    Args:
        config: content of scheduler/scheduler_config.json.
        kind: of the pipeline.

    Raises:
        ValueError: a scheduler that is not computed, see `scheduler_problems`.
    """
    problems = scheduler_problems(config)
    if problems:
        raise ValueError("\n".join(f"scheduler: {problem}" for problem in problems))
    if kind is not STABLE_DIFFUSION:
        return _made({**config, "clip_sample": False})
    return _as_pipeline_takes_it(config)


def is_distilled(model: ModelConfig) -> bool:
    """Whether the scheduler of a model's folder is that of consistency models."""
    from prdp.diffusion.model_folder import check_model, read_component

    kind = next((one for one in FORMATS if one.family == model.family), None)
    folder = None if kind is None else check_model(model.path, model.variant, model.revision, kind, model.config)
    return folder is not None and read_component(folder, "scheduler").get("_class_name") == CONSISTENCY


def distilled_warning(model: ModelConfig, sampler: SamplerConfig) -> str:
    """What to change where a model that was distilled to few steps is to be drawn as one that was not; else empty."""
    if sampler.kind == "consistency" or not is_distilled(model):
        return ""
    return (
        f"warning: sampler: model.path={model.path} has an {CONSISTENCY}, so that it was distilled to few steps, and "
        f"sampler.kind={sampler.kind} draws it as if it had not been; set sampler=consistency"
    )


def consistency_scheduler(config: Mapping[str, Any], original_steps: int) -> LCMScheduler:
    """The scheduler of a model that was distilled on `original_steps` evenly spaced steps of a process.

    Args:
        config: of `effective_scheduler`, of the process.
    """
    from diffusers import LCMScheduler

    taken = {key: config[key] for key in _PROCESS if config.get(key) is not None}
    return LCMScheduler(**taken, clip_sample=False, original_inference_steps=original_steps)


def scheduler_problems(config: Mapping[str, Any]) -> list[str]:
    """Why a scheduler's configuration cannot be sampled from exactly: the key, its value and what is expected."""
    from diffusers import DDIMScheduler

    name = config.get("_class_name", "DDIMScheduler")
    known = sorted({*DDIMScheduler._compatibles, CONSISTENCY} - {*_OTHER_PROCESSES})
    if name not in known:
        return [f"_class_name={name}: must be a scheduler of the process that Stable Diffusion denoises: "
                f"{', '.join(known)}"]
    betas = config.get("trained_betas")
    missing = [key for key in _BETAS if config.get(key) is None] if betas is None else []
    if missing:
        return [f"{missing[0]} is missing: must be given, with {', '.join(_BETAS)}, or trained_betas"]
    total = config.get("num_train_timesteps", 1000)
    if isinstance(total, bool) or not isinstance(total, int) or total < 1:
        return [f"num_train_timesteps={total}: must be a whole number of at least 1"]
    named = {key: config[key] for key in _BETAS[:2]} if betas is None else {"trained_betas": betas}
    for key, value in named.items():
        values = value if isinstance(value, list | tuple) else [value]
        if not all(isinstance(one, int | float) and 0 <= one < 1 for one in values):
            return [f"{key}={value!r:.80}: must be numbers of at least 0 and below 1"]
    wanted: dict[str, tuple[Any, ...]] = {
        "beta_schedule": BETA_SCHEDULES if betas is None else (config.get("beta_schedule"),),
        "prediction_type": PREDICTIONS,
        "timestep_spacing": DIFFUSION_SPACINGS,
        "thresholding": (False,),
        "rescale_betas_zero_snr": (False,) if config.get("prediction_type", "epsilon") == "epsilon" else (False, True),
    }
    reasons = {
        "thresholding": ": pixels are not thresholded here, and latents never should be",
        "rescale_betas_zero_snr": " for prediction_type=epsilon: the first step would have no finite mean",
    }
    problems = [
        f"{key}={config[key]}: must be {' or '.join(map(_plain, allowed))}{reasons.get(key, '')}"
        for key, allowed in wanted.items()
        if config.get(key) is not None and config[key] not in allowed
    ]
    if config.get("use_flow_sigmas"):
        problems.append("use_flow_sigmas=true: must be false: flow matching is another process")
    offset = config.get("steps_offset")
    if offset is not None and (type(offset) is not int or offset < 0):
        problems.append(f"steps_offset={offset!r}: must be a whole number of at least 0")
    if name == CONSISTENCY:
        problems += _consistency_problems(config, total)
    if betas is not None and len(betas) != total:
        problems.append(f"trained_betas holds {len(betas)} numbers: must be num_train_timesteps={total}")
    return problems


def _consistency_problems(config: Mapping[str, Any], total: int) -> list[str]:
    problems, steps, scaling = [], config.get("original_inference_steps", 50), config.get("timestep_scaling", 10.0)
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= total:
        problems.append(
            f"original_inference_steps={steps}: must be a whole number from 1 to num_train_timesteps={total}"
        )
    if isinstance(scaling, bool) or not isinstance(scaling, int | float) or not 0 < scaling < math.inf:
        problems.append(f"timestep_scaling={scaling}: must be a number above 0")
    return problems


def _made(config: Mapping[str, Any]) -> DDIMScheduler | LCMScheduler:
    from diffusers import DDIMScheduler, LCMScheduler

    kind = LCMScheduler if config.get("_class_name") == CONSISTENCY else DDIMScheduler
    return kind.from_config(dict(config))


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _as_pipeline_takes_it(config: Mapping[str, Any]) -> DDIMScheduler | LCMScheduler:
    from diffusers import StableDiffusionPipeline

    absent = dict.fromkeys(("vae", "text_encoder", "tokenizer", "unet", "safety_checker", "feature_extractor"))
    with warnings.catch_warnings():
        # It calls such configurations outdated, and mends them.
        warnings.simplefilter("ignore", FutureWarning)
        pipeline = StableDiffusionPipeline(**absent, scheduler=_made(config), requires_safety_checker=False)
    return pipeline.scheduler
