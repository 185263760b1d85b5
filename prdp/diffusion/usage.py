"""How to use exported weights in plain diffusers, as a short program and what is to be known of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prdp.config import ModelConfig, SamplerConfig
from prdp.diffusion.adapter_usage import loading_lines
from prdp.diffusion.guidance import guided
from prdp.diffusion.model_folder import absent_parts, found_from_anywhere, model_location
from prdp.diffusion.pipeline_formats import STABLE_DIFFUSION, PipelineFormat

USAGE_FILE = "README.md"
_SCHEDULE = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
    "rescale_betas_zero_snr",
)  # fmt: skip
_SCHEDULERS = {"ddim": "DDIMScheduler", "ddpm": "DDPMScheduler", "consistency": "LCMScheduler"}
_OF_CONSISTENCY = ("original_inference_steps", "timestep_scaling")
_WITHOUT_NOISE = '''
class LastStepsWithoutNoise(DDIMScheduler):
    def step(self, model_output, timestep, sample, eta=0.0, generator=None, **rest):
        if timestep in self.timesteps[-{steps}:]:
            eta = 0.0
        return super().step(model_output, timestep, sample, eta=eta, generator=generator, **rest)

'''


def usage_text(
    model: ModelConfig,
    sampler: SamplerConfig,
    scheduler: Mapping[str, Any],
    shape: tuple[int, int],
    mode: str,
    weights: Path,
    prompt: str,
    kind: PipelineFormat = STABLE_DIFFUSION,
) -> str:
    """Markdown: a program that samples with diffusers alone as the run did, and where it differs.

    Where the run drew noise in a window of steps alone, the program draws none; of consistency models, in all steps.

    Args:
        model: the base of the run.
        sampler: how the run sampled.
        scheduler: configuration of the scheduler that the run sampled with.
        shape: (height, width) of the images.
        mode: learner.mode, 'lora' or 'full'.
        weights: folder of the exported weights.
        prompt: stands in the program as an example.
        kind: of the pipeline.
    """
    windowed = sampler.window != "all"
    if windowed and sampler.kind != "consistency":
        sampler, scheduler = _without_noise(sampler, scheduler)
    return "\n".join(
        [
            "# These weights in plain diffusers",
            "",
            "```python",
            _program(model, sampler, scheduler, shape, mode, weights, prompt, kind).strip("\n"),
            "```",
            "",
            *_remarks(sampler, scheduler, windowed),
            "",
        ]
    )


def _without_noise(sampler: SamplerConfig, scheduler: Mapping[str, Any]) -> tuple[SamplerConfig, dict[str, Any]]:
    """DDIM's settings for the steps that a sampler takes outside its window."""
    ends_clean = sampler.kind == "ddpm" or scheduler.get("set_alpha_to_one", True)
    quiet = dataclasses.replace(sampler, kind="ddim", eta=0.0, deterministic_final_steps=0, window="all")
    return quiet, {**scheduler, "set_alpha_to_one": ends_clean}


def _program(
    model: ModelConfig,
    sampler: SamplerConfig,
    scheduler: Mapping[str, Any],
    shape: tuple[int, int],
    mode: str,
    weights: Path,
    prompt: str,
    kind: PipelineFormat,
) -> str:
    name = _SCHEDULERS[sampler.kind]
    options = [f"{key}={value!r}" for key, value in kind.arguments.items()]
    options += [] if model.dtype == "float32" else [f"dtype=torch.{model.dtype}"]
    embedded = model.path == "shapes" and mode == "lora"
    maker = "from_pretrained" if mode == "full" or model.config is None else "from_single_file"
    options += [] if maker == "from_pretrained" else [f"config={found_from_anywhere(str(model.config))!r}"]
    folder = Path(model_location(model.config or model.path))  # pipelines that are exported have the same parts
    options += [f"{name}=None" for name in absent_parts(folder, kind)] if folder.is_dir() else []
    if mode == "full":
        base = "weights"
    else:
        base = "pipeline_folder()" if embedded else repr(found_from_anywhere(model.path))
        options += [f"{key}={value!r}" for key in ("revision", "variant") if (value := getattr(model, key)) is not None]
    steps_without_noise = sampler.deterministic_final_steps if sampler.kind == "ddim" else 0
    lines = [
        "import torch",
        f"from diffusers import {name}, {kind.pipeline}",
        *(["from prdp.worlds.shapes.tiny_pipeline import pipeline_folder"] if embedded else []),
        _WITHOUT_NOISE.format(steps=steps_without_noise) if steps_without_noise else "",
        f"weights = {str(weights)!r}",
        f"pipeline = {kind.pipeline}.{maker}({', '.join([base, *options])})",
        *loading_lines(model, mode, "unet"),
        f"pipeline.scheduler = {'LastStepsWithoutNoise' if steps_without_noise else name}(",
        *(f"    {key}={value!r}," for key, value in _scheduler_arguments(sampler, scheduler).items()),
        ")",
        'pipeline.to("cuda" if torch.cuda.is_available() else "cpu")',
        "images = pipeline(",
        f"    {prompt!r},",
        f"    height={shape[0]},",
        f"    width={shape[1]},",
        f"    num_inference_steps={sampler.steps},",
        f"    guidance_scale={sampler.guidance_scale!r},",
        *([] if sampler.negative_prompt is None else [f"    negative_prompt={sampler.negative_prompt!r},"]),
        *([f"    eta={sampler.eta!r},"] if sampler.kind == "ddim" else []),
        "    generator=torch.Generator().manual_seed(0),",
        ").images",
        'images[0].save("picture.png")',
    ]
    return "\n".join(lines)


def _scheduler_arguments(sampler: SamplerConfig, scheduler: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: scheduler[key] for key in _SCHEDULE if scheduler.get(key) not in (None, False)}
    if sampler.kind == "consistency":
        found |= {key: scheduler[key] for key in _OF_CONSISTENCY if scheduler.get(key) is not None}
        original = sampler.original_inference_steps
        return found if original is None else found | {"original_inference_steps": original}
    found["timestep_spacing"] = sampler.timestep_spacing or scheduler.get("timestep_spacing", "leading")
    found["steps_offset"] = scheduler.get("steps_offset", 0)
    found["clip_sample"] = False
    if sampler.kind == "ddim":
        return found | {"set_alpha_to_one": scheduler.get("set_alpha_to_one", True)}
    return found | {"variance_type": "fixed_small"}


def _remarks(sampler: SamplerConfig, scheduler: Mapping[str, Any], windowed: bool) -> list[str]:
    remarks = [
        "* These are the settings that the weights were trained and judged with. Others work less well, most of all "
        "with few steps.",
        "* diffusers draws noise of its own: pictures have the run's distribution, and are not the very ones of its "
        "report.",
    ]
    if not guided(sampler.guidance_scale):
        remarks.append(
            "* A guidance scale up to 1 is no guidance. More may make better pictures, and takes twice as long."
        )
    if sampler.kind == "consistency" and (windowed or sampler.deterministic_final_steps > 1):
        remarks.append("* The run drew noise in some of the steps alone; the program draws it in all but the last.")
    elif windowed:
        remarks.append("* The run drew noise in a window of steps alone; the program draws none.")
    if differs_from_diffusers(sampler, scheduler):
        remarks.append(
            "* With this spacing and number of steps diffusers' DDIMScheduler steps to "
            "t - num_train_timesteps // steps. In the run a step led to the next timestep that the network is asked "
            "at, so that these pictures are somewhat worse."
        )
    return remarks


def differs_from_diffusers(sampler: SamplerConfig, scheduler: Mapping[str, Any]) -> bool:
    """Whether DDIMScheduler's steps lead elsewhere than those of `prdp.diffusion.transitions`."""
    spacing = sampler.timestep_spacing or scheduler.get("timestep_spacing", "leading")
    stride, rest = divmod(int(scheduler["num_train_timesteps"]), sampler.steps)
    even = (spacing == "leading" and scheduler.get("steps_offset", 0) <= stride) or (spacing == "trailing" and not rest)
    return sampler.kind == "ddim" and sampler.steps > 1 and not even
