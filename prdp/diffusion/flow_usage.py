"""How to use exported weights of a flow in plain diffusers: the run's sampler as a scheduler of some ten lines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prdp.config import ModelConfig, SamplerConfig
from prdp.diffusion.adapter_usage import loading_lines
from prdp.diffusion.guidance import guided
from prdp.diffusion.pipeline_formats import PipelineFormat
from prdp.diffusion.transitions import Transitions

_SCHEDULER = '''
# A step of the run's sampler ({kind}, eta {eta:g}): x' = a x + b v + s noise.
STEPS = [  # sigma, a, b, s
{rows}
]


class RunSampler(FlowMatchEulerDiscreteScheduler):
    def step(self, model_output, timestep, sample, return_dict=True, **rest):
        if self.step_index is None:
            self._init_step_index(timestep)
        sigma, a, b, s = STEPS[self.step_index]
        self._step_index += 1
        sample = a * sample + b * model_output
        return (sample + s * torch.randn(sample.shape, dtype=sample.dtype).to(sample.device) if s else sample,)

'''


def flow_usage_text(
    model: ModelConfig,
    sampler: SamplerConfig,
    scheduler: Mapping[str, Any],
    table: Transitions,
    shape: tuple[int, ...],
    mode: str,
    weights: Path,
    prompt: str,
    kind: PipelineFormat,
    guidance: Mapping[str, Any],
) -> str:
    """Markdown: a program that samples with diffusers alone as the run did, and what is to be known of it.

    Args:
        model: the base of the run.
        sampler: how the run sampled.
        scheduler: configuration of the pipeline's scheduler.
        table: of `sampler`.
        shape: (height, width) of the images.
        mode: learner.mode, 'lora' or 'full'.
        weights: folder of the exported weights.
        prompt: stands in the program as an example.
        kind: of the pipeline.
        guidance: arguments of its call for the guidance of `sampler`.
    """
    from prdp.diffusion.model_folder import EMBEDDED_FOLDERS, absent_parts, found_from_anywhere, model_location

    with_noise = np.full(1, sampler.window == "all")
    rows = [
        f"    ({', '.join(repr(float(one)) for one in (time, *table.coefficients(step, with_noise)))}),"
        for step, time in enumerate(table.times)
    ]
    embedded = model.path in EMBEDDED_FOLDERS and mode == "lora"
    base = "weights" if mode == "full" else "EMBEDDED" if embedded else repr(found_from_anywhere(model.path))
    options = [] if mode == "full" else [
        f"{key}={value!r}" for key in ("revision", "variant") if (value := getattr(model, key)) is not None
    ]  # fmt: skip
    options += [] if model.dtype == "float32" else [f"dtype=torch.{model.dtype}"]
    folder = Path(model_location(model.path))  # pipelines that are exported have the same parts
    options += [f"{name}=None" for name in absent_parts(folder, kind)] if folder.is_dir() else []
    lines = [
        "import torch",
        f"from diffusers import FlowMatchEulerDiscreteScheduler, {kind.pipeline}",
        *(["from prdp.diffusion.model_folder import EMBEDDED_FOLDERS"] if embedded else []),
        _SCHEDULER.format(kind=sampler.kind, eta=sampler.eta, rows="\n".join(rows)),
        *([f"EMBEDDED = EMBEDDED_FOLDERS[{model.path!r}]"] if embedded else []),
        f"weights = {str(weights)!r}",
        f"pipeline = {kind.pipeline}.from_pretrained({', '.join([base, *options])})",
        *loading_lines(model, mode, "transformer"),
        "# The sigmas below are those of the run: they are not to be shifted again.",
        f"pipeline.scheduler = RunSampler(num_train_timesteps={scheduler.get('num_train_timesteps', 1000)}, shift=1.0)",
        'pipeline.to("cuda" if torch.cuda.is_available() else "cpu")',
        "torch.manual_seed(0)",
        "images = pipeline(",
        f"    {prompt!r},",
        f"    height={shape[0]},",
        f"    width={shape[1]},",
        "    sigmas=[step[0] for step in STEPS],",
        f"    num_inference_steps={len(table)},",
        *(f"    {key}={value!r}," for key, value in guidance.items()),
        *([f"    max_sequence_length={model.max_sequence_length},"] if model.max_sequence_length else []),
        ").images",
        'images[0].save("picture.png")',
    ]
    remarks = [
        "* These are the settings that the weights were trained and judged with. Others work less well, most of all "
        "with few steps.",
        "* The noise is drawn anew: pictures have the run's distribution, and are not the very ones of its report.",
        "* The pipeline's own scheduler, without noise, makes pictures too; its own number of steps is larger.",
    ]
    if not guided(sampler.guidance_scale):
        remarks.append(
            "* A guidance scale up to 1 is no guidance. More may make better pictures, and takes twice as long."
        )
    if sampler.window != "all":
        remarks.append("* The run drew noise in a window of steps alone; the program draws none.")
    program = "\n".join(lines).strip("\n")
    return "\n".join(["# These weights in plain diffusers", "", "```python", program, "```", "", *remarks, ""])
