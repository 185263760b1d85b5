"""The embedded flow pipeline: what it is, that it draws what its prompts say, and how its teacher sees a flow."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.diffusion import build_sampler
from prdp.diffusion.model_folder import EMBEDDED_FOLDERS
from prdp.types import PromptBatch
from prdp.worlds.shapes.grammar import caption
from prdp.worlds.shapes.judge import judge
from prdp.worlds.shapes.split import scene_at
from prdp.worlds.shapes.tiny_pipeline import pipeline_folder

FOLDER = EMBEDDED_FOLDERS["shapes_flow"]


def test_the_shipped_pipeline_is_a_small_stable_diffusion_3_in_half_precision() -> None:
    index = json.loads((FOLDER / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusion3Pipeline"
    assert index["text_encoder_3"] == index["tokenizer_3"] == [None, None]
    parts = {name: index[name][1] for name in ("transformer", "vae", "text_encoder", "text_encoder_2", "scheduler")}
    assert parts == {
        "transformer": "SD3Transformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "scheduler": "FlowMatchEulerDiscreteScheduler",
    }
    from safetensors import safe_open

    files = list(FOLDER.glob("**/*.safetensors"))
    assert sum(file.stat().st_size for file in files) <= 12e6
    for file in files:
        with safe_open(file, framework="np") as tensors:
            names = tensors.keys()
            assert {str(tensors.get_slice(name).get_dtype()) for name in names} <= {"F16", "I64"}


@pytest.mark.slow
def test_it_draws_what_held_out_prompts_say() -> None:
    """Without guidance, in 10 stochastic steps; 64 prompts know the mean to some .03."""
    model = ModelConfig(family="stable_diffusion_3", path="shapes_flow", max_sequence_length=1)
    settings = SamplerConfig(kind="cps", steps=10, eta=0.8, guidance_scale=1.0, timestep_spacing="linspace")
    texts = tuple(caption(scene_at("heldout", index, 0)) for index in range(64))
    sampler = build_sampler(model, LearnerConfig(mode="frozen"), settings, seed=0)
    images = sampler.sample(PromptBatch(0, 0, texts, ({},) * len(texts)), 1, seed=0, trajectory=False).images
    scores = [judge(image, text) for image, text in zip(images, texts, strict=True)]
    assert np.mean([score["score"] for score in scores]) > 0.45
    others = [judge(image, text)["score"] for image, text in zip(images, [*texts[1:], texts[0]], strict=True)]
    assert np.mean(others) < 0.35, "of other prompts' pictures"


@pytest.mark.slow
def test_the_teacher_tells_the_velocity_of_its_noise_prediction(tmp_path: Path) -> None:
    """At the sigma whose noise-to-signal ratio is that of a timestep, velocities are (x_t - x_0) / sigma."""
    from diffusers import StableDiffusionPipeline

    from prdp.worlds.shapes.pretrain_flow import Teacher

    pipeline = StableDiffusionPipeline.from_pretrained(pipeline_folder(), safety_checker=None, dtype=torch.float32)
    level = pipeline.scheduler.alphas_cumprod[torch.tensor([100, 600])]
    ratio = ((1 - level) / level).sqrt()
    sigma = ratio / (1 + ratio)
    prompts = ["a small solid red circle on a white background", ""]
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    velocities, features = Teacher(pipeline, guidance_scale=3.0).teach(latents, sigma, prompts)
    assert [feature.shape for feature in features] == [(2, 64, 96), (2, 64, 64)]
    tokens = pipeline.tokenizer(
        [*prompts, ""], padding="max_length", max_length=pipeline.tokenizer.model_max_length, return_tensors="pt"
    )
    states = pipeline.text_encoder(tokens.input_ids).last_hidden_state
    for row, timestep in enumerate((100, 600)):
        # x_t of the variance-preserving process is that of the flow times sqrt(alpha) / (1 - sigma).
        scaled = latents[row : row + 1] * level[row].sqrt() / (1 - sigma[row])
        with torch.no_grad():
            told, empty = (
                pipeline.unet(scaled, timestep, encoder_hidden_states=states[which : which + 1]).sample
                for which in (row, 2)
            )
        epsilon = empty + 3.0 * (told - empty)
        clean = (scaled - (1 - level[row]).sqrt() * epsilon) / level[row].sqrt()
        expected = (latents[row : row + 1] - clean) / sigma[row]
        torch.testing.assert_close(velocities[row : row + 1], expected, rtol=1e-3, atol=1e-3)
