"""What holds for the policy of every family: log-ratios of independent Gaussians, and gradients of autodiff."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.diffusion import build_policy, build_sampler
from prdp.evidence.trajectory import TrajectoryRecorder, stored_positions
from prdp.learners import build_learner
from prdp.objectives.prdp import prdp
from prdp.types import PromptBatch, Rollout, Weights

FULL = LearnerConfig(mode="full", max_grad_norm=1e9)
PROMPTS = PromptBatch(2, 3, ("a large red circle", "two small stars"), ({}, {}))


def moved(weights: Weights, scale: float = 0.02) -> Weights:
    """Other weights near some."""
    rng = np.random.default_rng(1)
    return Weights.of(
        1, {k: (v + scale * rng.normal(size=v.shape)).astype(np.float32) for k, v in weights.tensors.items()}
    )


def scored(rollout: Rollout) -> Rollout:
    """With rewards that tell nothing."""
    return rollout.scored(np.random.default_rng(0).normal(size=len(rollout)), {})


def check_log_ratios(model: ModelConfig, settings: SamplerConfig) -> Rollout:
    """Stored log-ratios of a full policy with moved weights equal those of two Gaussian log-densities in float64."""
    sampler = build_sampler(model, FULL, settings, seed=0, recorder=TrajectoryRecorder())
    policy, table = sampler._policy, sampler._transitions
    sampler.load_weights(moved(policy.weights.export(0)))
    rollout = sampler.sample(PROMPTS, 2, seed=3)
    conditions = policy.encode(rollout.image_prompts)
    for image in range(4):
        for column, step in enumerate(rollout.stored["steps"][image]):
            place = stored_positions(rollout.stored["steps"])[image, column]
            x, then = (torch.from_numpy(rollout.stored["latents"][image : image + 1, place + one]) for one in (0, 1))
            time, given = torch.tensor([table.times[step]], dtype=torch.float32), conditions[np.array([image])]
            with torch.no_grad():
                output = policy.output(x, time, given, settings.guidance_scale).double()
            reference = torch.from_numpy(rollout.stored["base_output"][image : image + 1, column]).double()
            now, before = (
                torch.distributions.Normal(
                    table.sample_coef[step] * x.double() + table.output_coef[step] * predicted, table.sigma[step]
                )
                for predicted in (output, reference)
            )
            expected = (now.log_prob(then.double()) - before.log_prob(then.double())).mean().item()
            assert abs(expected) > 1e-7
            assert rollout.stored["log_ratio"][image, column] == pytest.approx(expected, rel=2e-3, abs=2e-6)
    return rollout


def check_gradients(model: ModelConfig, settings: SamplerConfig, microbatches: Sequence[int] = (3, 1000)) -> None:
    """The two-pass gradient of PRDP is that of one backward pass through all evidence, without guidance."""
    rollout = scored(
        build_sampler(model, FULL, settings, seed=0, recorder=TrajectoryRecorder()).sample(PROMPTS, 2, seed=3)
    )
    gradients = []
    for microbatch in microbatches:
        policy = build_policy(model, FULL, seed=0, keep_reference=False)
        config = dataclasses.replace(FULL, microbatch=microbatch)
        table = policy.process.transitions(settings)
        objective = {"name": "prdp", "beta": 0.5, "clip_range": None}
        learner: Any = build_learner(policy, table, 1.0, config, objective)
        metrics = learner.update(rollout)
        assert metrics["ratio_error"] < 1e-5
        gradients.append({name: value.grad.clone() for name, value in policy.weights.parameters.items()})
    policy = build_policy(model, FULL, seed=0, keep_reference=False)
    table, conditions = policy.process.transitions(settings), policy.encode(rollout.image_prompts)
    columns = []
    for column in range(rollout.stored["log_ratio"].shape[1]):
        steps, places = rollout.stored["steps"][:, column], stored_positions(rollout.stored["steps"])[:, column]
        x, then = (torch.from_numpy(rollout.stored["latents"][np.arange(4), places + one]) for one in (0, 1))
        output = policy.output(x, torch.from_numpy(table.times[steps]).float(), conditions, 1.0)

        def of(values: np.ndarray, steps: np.ndarray = steps) -> torch.Tensor:
            return torch.from_numpy(values[steps]).view(-1, 1, 1, 1)

        means = [
            of(table.sample_coef) * x + of(table.output_coef) * predicted
            for predicted in (output, torch.from_numpy(rollout.stored["base_output"][:, column]))
        ]
        logs = [torch.distributions.Normal(mean, of(table.sigma)).log_prob(then) for mean in means]
        columns.append((logs[0] - logs[1]).flatten(1).mean(1))
    loss, _ = prdp(
        torch.stack(columns, 1),
        torch.from_numpy(rollout.stored["log_ratio"]).double(),
        None,
        torch.from_numpy(rollout.rewards),
        torch.from_numpy(rollout.group_ids),
        None,
        None,
        beta=0.5,
        clip_range=None,
    )
    loss.backward()
    for name, value in policy.weights.parameters.items():
        if value.grad is None:
            assert not gradients[0][name].any()
            continue
        scale = value.grad.abs().max().clamp(min=1e-7)
        for gradient in gradients:
            assert (gradient[name] - value.grad).abs().max() <= 2e-3 * scale + 1e-8, name
