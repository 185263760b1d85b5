"""Plain denoising against diffusers' own training loss, on its own networks and schedulers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import batch, evaluate

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.diffusion import build_policy, build_sampler
from prdp.diffusion.process import Draws
from prdp.evidence.denoising import FinalLatents
from prdp.learners import build_learner
from prdp.types import PromptBatch

SAMPLER = SamplerConfig(steps=2, eta=0.0, guidance_scale=1.0)
PROMPTS = ("a small red circle", "two stars", "a blue cross")
DRAWS, SEED = 4, 3


def test_loss_and_coefficients_by_hand() -> None:
    arrays = batch()
    result = evaluate("denoising", arrays)
    assert result.loss == pytest.approx(-arrays["denoising"].mean(), rel=1e-12)
    assert result.metrics == {}
    np.testing.assert_allclose(result.tables["denoising"], -1.0 / arrays["denoising"].size, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_loss_and_gradient_equal_diffusers_training_loss(model_folder: Path, prediction: str) -> None:
    """Of groups of one image, in float32, with adapters; rewards that are all equal change nothing."""
    from diffusers import DDPMScheduler

    file = model_folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "prediction_type": prediction}))
    model = ModelConfig(path=str(model_folder))
    config = LearnerConfig(lora_rank=2, learning_rate=1e-2, max_grad_norm=float("inf"), microbatch=5)
    policy: Any = build_policy(model, config, seed=0, keep_reference=False)
    objective = {"name": "denoising", "draws": DRAWS}
    learner = build_learner(policy, policy.process.transitions(SAMPLER), 1.0, config, objective, SEED)
    with torch.no_grad():
        for value in policy.weights.parameters.values():
            value.add_(0.1)  # of which half are 0 at the start, and the others then have no gradient
    sampler = build_sampler(model, config, SAMPLER, seed=0, recorder=FinalLatents())
    rollout = sampler.sample(PromptBatch(0, 0, PROMPTS, ({}, {}, {})), 1, SEED).scored(np.ones(len(PROMPTS)), {})

    images, draws = (grid.ravel() for grid in np.indices((len(PROMPTS), DRAWS)))
    own = Draws(policy.process, SEED, 0, DRAWS).cells(images, np.zeros_like(images), draws, (4, 8, 8))
    timesteps, noise = torch.from_numpy(own[0]).long(), torch.from_numpy(own[1])
    latents = torch.from_numpy(rollout.stored["final_latents"][images])
    scheduler = DDPMScheduler.from_pretrained(model_folder, subfolder="scheduler")
    noisy = scheduler.add_noise(latents, noise, timesteps)
    target = noise if prediction == "epsilon" else scheduler.get_velocity(latents, noise, timesteps)
    states = policy.encode(PROMPTS).fields["states"][images]
    predicted = policy.network(noisy, timesteps, encoder_hidden_states=states, return_dict=False)[0]
    loss = torch.nn.functional.mse_loss(predicted.float(), target.float(), reduction="mean")
    expected = torch.autograd.grad(loss, list(policy.weights.parameters.values()))

    metrics = learner.update(rollout)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["denoising_error"] == pytest.approx(loss.item(), rel=1e-5)
    for value, gradient in zip(policy.weights.parameters.values(), expected, strict=True):
        assert gradient.abs().max() > 0
        torch.testing.assert_close(value.grad, gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))
