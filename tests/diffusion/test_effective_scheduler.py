"""Folders with every kind of scheduler, and other settings, against diffusers' own pipeline, picture by picture."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from composing import compose

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.configuration.memory_plan import device_plans
from prdp.diffusion import build_policy
from prdp.diffusion.effective_scheduler import distilled_warning, effective_scheduler
from prdp.diffusion.model_folder import family_in
from prdp.diffusion.noise import ImageNoise
from prdp.diffusion.pipeline_checks import component_problems
from prdp.diffusion.sampler import Sampler
from prdp.types import PromptBatch

PROMPTS = PromptBatch(3, 5, ("a small solid red circle", "a large hollow blue star"), ({}, {}))
SEED, STEPS = 11, 5
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
EULER = {"_class_name": "EulerDiscreteScheduler", **BETAS}
CLASSES = (
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DPMSolverSDEScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
)
CASES: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    **{f"minimal {name}": ({"_class_name": name, **BETAS}, {}) for name in CLASSES},
    "clip_sample": ({"_class_name": "DDIMScheduler", **BETAS, "clip_sample": True, "set_alpha_to_one": False}, {}),
    "offset 0": ({"_class_name": "PNDMScheduler", **BETAS, "steps_offset": 0, "skip_prk_steps": True}, {}),
    "trailing v": ({**EULER, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}, {}),
    "sample": ({"_class_name": "DDPMScheduler", **BETAS, "prediction_type": "sample"}, {}),
    "own betas": ({"_class_name": "DDIMScheduler", "trained_betas": np.linspace(1e-3, 2e-2, 1000).tolist()}, {}),
    "karras": ({"_class_name": "DPMSolverMultistepScheduler", **BETAS, "use_karras_sigmas": True}, {}),
    "masked text": (EULER, {"text_encoder/config.json": {"use_attention_mask": True}}),
    "not square": (EULER, {"unet/config.json": {"sample_size": [8, 16]}}),
}


def changed(folder: Path, scheduler: dict[str, Any], edits: dict[str, dict[str, Any]]) -> None:
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    for file, values in edits.items():
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**content, **values}))


def pictures(folder: Path, *etas: float) -> list[np.ndarray]:
    """Ours, uint8, for each eta."""
    learner = LearnerConfig(mode="frozen")
    policy = build_policy(ModelConfig(path=str(folder)), learner, seed=0, keep_reference=False)
    settings = [SamplerConfig(steps=STEPS, eta=eta, guidance_scale=3.0, microbatch=4) for eta in etas]
    return [Sampler(policy, one).sample(PROMPTS, 1, SEED, trajectory=False).images for one in settings]


def theirs(folder: Path, *etas: float) -> list[np.ndarray]:
    """Those of diffusers' pipeline with the same noise, in levels."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    scheduler = DDIMScheduler.from_config(DDIMScheduler.load_config(folder, subfolder="scheduler"))
    # Given to the constructor, which sets steps_offset and clip_sample.
    pipeline = StableDiffusionPipeline.from_pretrained(folder, scheduler=scheduler, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    size = pipeline.unet.config.sample_size
    shape = (4, *((size, size) if isinstance(size, int) else size))
    found = []
    for eta in etas:
        noise = ImageNoise(SEED, 3, np.array([5, 6]), np.array([0, 0]), shape)
        settings = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "eta": eta, "output_type": "np"}
        first = torch.from_numpy(noise.draw())
        draw = "diffusers.schedulers.scheduling_ddim.randn_tensor"
        with patch(draw, lambda *args, noise=noise, **kwargs: torch.from_numpy(noise.draw())):
            images = pipeline(list(PROMPTS.texts), latents=first, **settings).images
        found.append((images * 255).round().astype(int))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_pictures_equal_those_of_diffusers(model_folder: Path, name: str) -> None:
    changed(model_folder, *CASES[name])
    etas = (0.0, 1.0)
    for eta, ours, expected in zip(etas, pictures(model_folder, *etas), theirs(model_folder, *etas), strict=True):
        assert ours.shape == expected.shape
        assert np.abs(ours.astype(int) - expected).max() <= 1, eta
        assert np.ptp(ours) > 10, eta


def test_what_the_cases_change_matters(model_folder: Path) -> None:
    shown = {}
    for name in ("minimal DDIMScheduler", "trailing v", "sample", "own betas", "masked text"):
        changed(model_folder, *CASES[name])
        shown[name] = pictures(model_folder, 1.0)[0].astype(int)
        if name == "masked text":
            changed(model_folder, {}, {"text_encoder/config.json": {"use_attention_mask": False}})
    first = shown.pop("minimal DDIMScheduler")
    assert all(np.abs(other - first).max() > 1 for other in shown.values())


def test_a_saved_pipeline_says_how_it_is_sampled(model_folder: Path, tmp_path: Path) -> None:
    from prdp.diffusion.pipeline_loading import load_pipeline

    changed(model_folder, *CASES["minimal DPMSolverMultistepScheduler"])
    pipeline = load_pipeline(ModelConfig(path=str(model_folder)))
    pipeline.save_pretrained(tmp_path / "saved")
    again = load_pipeline(ModelConfig(path=str(tmp_path / "saved")))
    config = dict(pipeline.scheduler.config)
    assert {key: again.scheduler.config[key] for key in config if not key.startswith("_")} == {
        key: value for key, value in config.items() if not key.startswith("_")
    }
    assert (config["timestep_spacing"], config["steps_offset"], config["clip_sample"]) == ("leading", 1, False)


def test_a_tokenizer_without_a_length_takes_that_of_the_text_encoder(model_folder: Path) -> None:
    from prdp.prompts.tokens import load_tokenizer

    (expected,) = pictures(model_folder, 1.0)
    file = model_folder / "tokenizer" / "tokenizer_config.json"
    content = json.loads(file.read_text())
    for key in ("model_max_length", "max_length"):
        content.pop(key, None)
    file.write_text(json.dumps(content))
    assert component_problems(model_folder) == []
    np.testing.assert_array_equal(pictures(model_folder, 1.0)[0], expected)
    assert load_tokenizer(str(model_folder)).model_max_length == 32


def test_what_is_refused_raises() -> None:
    with pytest.raises(ValueError, match="scheduler: beta_end is missing"):
        effective_scheduler({"_class_name": "DDIMScheduler", "beta_start": 1e-4})


def with_embedded_guidance(folder: Path) -> None:
    """The folder's UNet becomes one of a latent consistency model, with weights of its own."""
    from diffusers import UNet2DConditionModel

    config = json.loads((folder / "unet" / "config.json").read_text())
    torch.manual_seed(1)
    unet = UNet2DConditionModel.from_config({**config, "time_cond_proj_dim": 32})
    unet.time_embedding.cond_proj.weight.data.mul_(5)
    unet.save_pretrained(folder / "unet")
    index = {"model_index.json": {"scheduler": ["diffusers", "LCMScheduler"]}}
    changed(folder, {"_class_name": "LCMScheduler", **BETAS, "original_inference_steps": 20}, index)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "LatentConsistencyModelPipeline"])
def test_latent_consistency_models_are_told_the_guidance(model_folder: Path, name: str) -> None:
    import diffusers
    from diffusers import LCMScheduler

    model = ModelConfig(path=str(model_folder))
    assert distilled_warning(model, SamplerConfig()) == ""
    with_embedded_guidance(model_folder)
    index = model_folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": name}))
    assert component_problems(model_folder) == [] and family_in(model_folder) == "stable_diffusion"
    config = compose("sampler=consistency", "objective=prdp_denoising", "output_dir=x")
    [plan] = device_plans(dataclasses.replace(config, model=model))
    assert plan.peak > 0
    assert "sampler.kind=ddim draws it as if it had not been" in distilled_warning(model, SamplerConfig())
    assert distilled_warning(model, SamplerConfig(kind="consistency")) == ""
    policy = build_policy(model, LearnerConfig(mode="frozen"), seed=0, keep_reference=False)
    pipeline = getattr(diffusers, name).from_pretrained(model_folder, safety_checker=None)
    assert type(pipeline).__name__ == name
    assert isinstance(pipeline.scheduler, LCMScheduler)
    pipeline.set_progress_bar_config(disable=True)
    drawn = []
    for scale in (8.0, 2.0):
        settings = SamplerConfig(kind="consistency", steps=3, guidance_scale=scale, microbatch=4)
        rollout = Sampler(policy, settings).sample(PROMPTS, 1, SEED, trajectory=False)
        assert rollout.network_passes is not None and rollout.network_passes.tolist() == [3.0, 3.0]
        noise = ImageNoise(SEED, 3, np.array([5, 6]), np.array([0, 0]), (4, 8, 8))
        first = torch.from_numpy(noise.draw())
        draw = "diffusers.schedulers.scheduling_lcm.randn_tensor"
        with patch(draw, lambda *args, noise=noise, **kwargs: torch.from_numpy(noise.draw())):
            expected = pipeline(
                list(PROMPTS.texts), latents=first, num_inference_steps=3, guidance_scale=scale, output_type="np"
            ).images
        assert np.abs(rollout.images.astype(int) - (expected * 255).round().astype(int)).max() <= 1
        drawn.append(rollout.images.astype(int))
    assert np.abs(drawn[0] - drawn[1]).max() > 1
