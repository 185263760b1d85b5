"""Images of other sizes than the checkpoint's, not square ones included, against diffusers' own pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from deep_pipeline import deep_pipeline
from diffusers import DDIMScheduler, StableDiffusionPipeline
from narrow_flow import narrow_pipeline

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.diffusion import build_policy, build_sampler, family_of
from prdp.diffusion.noise import ImageNoise
from prdp.diffusion.unet_policy import latent_shape
from prdp.support.errors import StartError
from prdp.types import PromptBatch

PROMPTS = PromptBatch(2, 3, ("a small red circle", "a large hollow blue star"), ({}, {}))
STEPS, SEED = 4, 7
FULL = LearnerConfig(mode="full")


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deep")
    deep_pipeline().save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width", "guidance_scale"), [(72, 40, 1.0), (72, 40, 4.0), (8, 128, 4.0)])
def test_pictures_equal_those_of_diffusers(deep: Path, height: int, width: int, guidance_scale: float) -> None:
    """Latents of 9 x 5, odd at every level, and of 1 x 16."""
    model = ModelConfig(path=str(deep), height=height, width=width, device="cpu")
    settings = SamplerConfig(steps=STEPS, guidance_scale=guidance_scale, microbatch=3)
    ours = build_sampler(model, FULL, settings, seed=0).sample(PROMPTS, 1, SEED, trajectory=False).images
    pipeline = StableDiffusionPipeline.from_pretrained(deep, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    noise = ImageNoise(SEED, 2, np.array([3, 4]), np.array([0, 0]), (4, height // 8, width // 8))
    first = torch.from_numpy(noise.draw())
    draw = "diffusers.schedulers.scheduling_ddim.randn_tensor"
    with patch(draw, lambda *args, **kwargs: torch.from_numpy(noise.draw())):
        theirs = pipeline(
            list(PROMPTS.texts),
            height=height,
            width=width,
            latents=first,
            num_inference_steps=STEPS,
            guidance_scale=guidance_scale,
            eta=1.0,
            output_type="np",
        ).images
    assert ours.shape == (2, height, width, 3)
    assert np.abs(ours.astype(int) - (theirs * 255).round()).max() <= 1


def test_sizes_are_told_of_a_model_that_is_not_loaded(deep: Path, tmp_path: Path) -> None:
    narrow_pipeline().save_pretrained(tmp_path)
    flow = {"family": "stable_diffusion_3", "path": str(tmp_path)}
    for settings in (
        {"path": str(deep)},
        {"path": str(deep), "width": 40},
        {**flow, "max_sequence_length": 3},
        {**flow, "max_sequence_length": 3, "height": 48},
        {"family": "gaussian_mixtures", "path": "gaussian_mixtures"},
    ):
        model = ModelConfig(**settings)
        policy: Any = build_policy(model, FULL, seed=0, keep_reference=False)
        assert family_of(model).latent_shape_of(model) == policy.latent_shape
        pictures = policy.decode(torch.zeros(1, *policy.latent_shape))
        assert family_of(model).picture_size_of(model) == pictures.shape[1:3]


def test_sizes_that_do_not_fit_are_refused_with_the_nearest_that_do(deep: Path) -> None:
    unet, vae = {"sample_size": 64, "in_channels": 4}, {"block_out_channels": (1, 1, 1, 1)}
    assert latent_shape(unet, vae, (None, None)) == (4, 64, 64)
    assert latent_shape({**unet, "sample_size": [64, 48]}, vae, (768, None)) == (4, 96, 48)
    assert latent_shape(unet, {"block_out_channels": (1,)}, (24, None)) == (4, 24, 64)
    for changed, size, message in (
        (vae, (516, None), "model.height=516: must be a multiple of 8 pixels, such as 512 or 520"),
        (vae, (512, 7), "model.width=7: must be a multiple of 8 pixels, such as 8 or 16"),
        ({"block_out_channels": (1,)}, (12, None), "model.height=12: must be a multiple of 8 pixels"),
        ({"block_out_channels": (1,) * 5}, (None, 24), "model.width=24: must be a multiple of 16 pixels"),
    ):
        with pytest.raises(StartError, match=message):
            latent_shape(unet, changed, size)
    with pytest.raises(StartError, match=r"model\.height=60: must be a multiple of 8 pixels"):
        family_of(ModelConfig()).check(ModelConfig(path=str(deep), height=60))


@pytest.mark.slow
def test_the_jax_twin_takes_sides_that_halve_at_every_level(deep: Path) -> None:
    def problems(**size: int) -> list[str]:
        learner = LearnerConfig(mode="full", framework="jax")
        return family_of(ModelConfig()).learner_problems(ModelConfig(path=str(deep), **size), learner)

    assert problems(height=64, width=128) == []
    assert problems(height=72) == [
        "learner.framework=jax: model.height=72: must be a multiple of 64 pixels, such as 64 or 128"
    ]
