"""The JAX learner against the torch one: same rollouts, same numbers, interchangeable checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from averages import DECAY, check_average
from thread_ranks import ThreadRanks

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.diffusion import build_policy, build_sampler
from prdp.diffusion.lora_file import LORA_FILE
from prdp.diffusion.recording import Recorder
from prdp.evaluation.loading import apply_lora
from prdp.evidence.trajectory import TrajectoryRecorder
from prdp.learners import build_learner
from prdp.learners.guards import RatioError
from prdp.learners.learner import Learner
from prdp.learners.rank import LearnerRank
from prdp.types import PromptBatch, Rollout, Weights

pytestmark = pytest.mark.slow

SAMPLER = SamplerConfig(steps=3, guidance_scale=2.0, timestep_spacing="trailing")
OBJECTIVE = {"name": "prdp", "beta": 1e-3, "clip_range": 1e-4}


@pytest.fixture
def model(narrow_pipeline: Path) -> ModelConfig:
    return ModelConfig(path=str(narrow_pipeline))


def learner_config(**changes: Any) -> LearnerConfig:
    settings: dict[str, Any] = {"lora_rank": 4, "lora_alpha": 8.0, "learning_rate": 1e-3, "weight_decay": 0.1}
    return LearnerConfig(**{**settings, "max_grad_norm": 0.5, "ema_decay": 0.9, "microbatch": 4, **changes})


def build(model: ModelConfig, config: LearnerConfig, objective: Mapping[str, Any] = OBJECTIVE) -> Learner:
    policy = build_policy(model, config, seed=0, keep_reference=False)
    return build_learner(policy, policy.process.transitions(SAMPLER), SAMPLER.guidance_scale, config, objective)


def rollout_of(
    model: ModelConfig,
    config: LearnerConfig,
    weights: Weights,
    epoch: int = 0,
    recorder: Recorder = TrajectoryRecorder(),  # noqa: B008 - immutable
) -> Rollout:
    sampler = build_sampler(model, config, SAMPLER, seed=0, recorder=recorder)
    if weights.version:
        sampler.load_weights(weights)
    prompts = PromptBatch(epoch, 0, ("a small red circle", "two stars"), ({}, {}))
    rollout = sampler.sample(prompts, 2, seed=3)
    return rollout.scored(np.random.default_rng(epoch).normal(size=4), {})


def distance(left: Weights, right: Weights) -> float:
    """Euclidean, over all tensors."""
    assert left.tensors.keys() == right.tensors.keys()
    return float(sum(np.square(left.tensors[name] - right.tensors[name]).sum() for name in left.tensors) ** 0.5)


@pytest.mark.parametrize(("mode", "updates"), [("lora", 2), ("full", 1)])
def test_updates_equal_torch(model: ModelConfig, mode: str, updates: int) -> None:
    config = learner_config(mode=mode)
    twins = [build(model, config), build(model, learner_config(mode=mode, framework="jax"))]
    start = twins[0].weights()
    assert twins[1].weights().checksum == start.checksum
    metrics: list[list[dict[str, float]]] = [[], []]
    for epoch in range(2):
        rollout = rollout_of(model, config, twins[0].weights(), epoch)
        for _ in range(updates):
            for log, learner in zip(metrics, twins, strict=True):
                log.append(learner.update(rollout))
    moved = distance(start, twins[0].weights())
    assert moved > 1e-2
    assert distance(twins[0].weights(), twins[1].weights()) < 0.01 * moved
    assert distance(twins[0].evaluation_weights(), twins[1].evaluation_weights()) < 0.01 * moved
    for ours, theirs in zip(*metrics, strict=True):
        for name in ("loss", "grad_norm", "logratio_ref"):
            assert theirs[name] == pytest.approx(ours[name], rel=2e-3, abs=1e-6), name
    assert metrics[1][0]["ratio_error"] < 1e-6
    if updates > 1:
        assert 0 < metrics[1][1]["clipfrac"] < 1, "the clip must be active for this test to say anything"


def test_ranks_equal_one_process_to_the_bit(model: ModelConfig) -> None:
    config = learner_config(framework="jax")
    alone = build(model, config)
    policy = build_policy(model, config, seed=0, keep_reference=False)
    ranks = ThreadRanks(3, lambda number: LearnerRank(build(model, config).engine))  # type: ignore[arg-type]
    table = policy.process.transitions(SAMPLER)
    together = build_learner(policy, table, SAMPLER.guidance_scale, config, OBJECTIVE, ranks=ranks)
    rollout = rollout_of(model, config, alone.weights())
    for _ in range(2):
        metrics = [learner.update(rollout) for learner in (alone, together)]
    for one in metrics:
        del one["time/learn"]
    assert metrics[0] == metrics[1]
    assert alone.weights().checksum == together.weights().checksum


def test_two_channels_equal_torch(model: ModelConfig) -> None:
    """GRPO with a KL that weighs as much as the surrogate."""
    objective = {"name": "grpo", "beta": 100.0}
    twins = [build(model, learner_config(framework=name, ema_decay=0.0), objective) for name in ("torch", "jax")]
    rng = np.random.default_rng(0)
    tensors = {
        name: (value + 0.05 * rng.normal(size=value.shape)).astype(np.float32)
        for name, value in twins[0].weights().tensors.items()
    }
    start = Weights.of(1, tensors)
    for learner in twins:
        learner.load_state({f"weights/{name}": value for name, value in tensors.items()}, {"updates": 0})
    rollout = dataclasses.replace(rollout_of(model, learner_config(), start), weights_version=0)
    ours, theirs = (learner.update(rollout) for learner in twins)
    assert distance(twins[0].weights(), twins[1].weights()) < 0.01 * distance(start, twins[0].weights())
    assert ours["kl_ref"] > 0
    for name in ("loss", "grad_norm", "kl_ref", "clipfrac"):
        assert theirs[name] == pytest.approx(ours[name], rel=2e-3, abs=1e-6), name


@pytest.mark.parametrize(("guidance_scale", "branches"), [(0.0, 1), (0.5, 1), (1.0, 1), (1.5, 2)])
def test_guidance_is_off_up_to_one(model: ModelConfig, guidance_scale: float, branches: int) -> None:
    policy: Any = build_policy(model, learner_config(lora_targets=["to_q"]), seed=0, keep_reference=False)
    seen = []
    policy.network.register_forward_pre_hook(lambda unet, inputs: seen.append(len(inputs[0])))
    latents, states = torch.zeros(1, *policy.latent_shape), policy.encode(["two stars"])
    with torch.no_grad():
        outputs = [policy.output(latents, torch.tensor([500]), states, scale) for scale in (guidance_scale, 1.0)]
    assert seen == [branches, 1]
    assert torch.equal(*outputs) == (branches == 1)


def test_denoising_errors_equal_torch(model: ModelConfig) -> None:
    """Of the policy and of the reference, at draws that both make alike; JAX pads the second of 5 and 3 cells."""
    objective = {"name": "diffusion_dpo", "beta": 2000.0, "draws": 2}
    twins = [build(model, learner_config(framework=name, microbatch=5), objective) for name in ("torch", "jax")]
    rollout = rollout_of(model, learner_config(), twins[0].weights(), recorder=twins[0].recorder)
    start = twins[0].weights()
    for _ in range(2):
        ours, theirs = (learner.update(rollout) for learner in twins)
    assert distance(twins[0].weights(), twins[1].weights()) < 0.01 * distance(start, twins[0].weights())
    for name in ("loss", "grad_norm", "denoising_error", "implicit_accuracy"):
        assert theirs[name] == pytest.approx(ours[name], rel=2e-3, abs=1e-6), name


def test_checkpoints_are_interchangeable_and_exported(model: ModelConfig, tmp_path: Path) -> None:
    config, other = learner_config(), learner_config(framework="jax")
    straight, first = build(model, config), build(model, other)
    rollout = rollout_of(model, config, straight.weights())
    for learner in (straight, first):
        learner.update(rollout)
    straight.update(rollout)
    tensors, scalars = first.state()
    expected, _ = straight.state()
    assert tensors.keys() == expected.keys()
    continued = build(model, config)
    continued.load_state(tensors, scalars)
    continued.update(rollout)
    back = build(model, other)
    back.load_state(*continued.state())
    assert back.version == 2
    assert back.weights().checksum == continued.weights().checksum
    assert distance(continued.weights(), straight.weights()) < 1e-5

    policy = build_policy(model, other, seed=0, keep_reference=False)
    policy.weights.bind(back.evaluation_weights())
    policy.save(tmp_path)
    evaluated = build_policy(model, LearnerConfig(mode="frozen"), seed=0, keep_reference=False)
    apply_lora(evaluated, tmp_path / LORA_FILE)
    latents, timesteps = torch.randn(1, *policy.latent_shape), torch.tensor([500])
    of_both = [one.output(latents, timesteps, one.encode(["two stars"]), 2.0) for one in (policy, evaluated)]
    torch.testing.assert_close(*of_both, rtol=0, atol=1e-6)

    del tensors["optimizer/exp_avg/" + next(iter(straight.weights().tensors))]
    with pytest.raises(ValueError, match="no tensor 'optimizer/exp_avg/"):
        back.load_state(tensors, scalars)


def test_the_moving_average_is_its_formula(model: ModelConfig) -> None:
    def set_gradient(learner: Any, update: int) -> None:
        rng = np.random.default_rng(update)
        learner.engine._network.gradient = {
            name: jnp.asarray(rng.normal(size=value.shape), jnp.float32)
            for name, value in sorted(learner.engine._state.tensors.items())
        }

    config = learner_config(framework="jax", ema_decay=DECAY, lora_targets=["to_q"])
    check_average(lambda: build(model, config), set_gradient, rtol=2e-4)


def test_the_ratio_guard_stops_before_the_step(model: ModelConfig) -> None:
    config = learner_config(framework="jax")
    learner = build(model, config)
    rollout = rollout_of(model, config, learner.weights())
    before = learner.weights().checksum
    rollout.stored["log_ratio"][1, 2] += 0.5
    with pytest.raises(RatioError, match=r"differs by 0\.5 .*image 1, step 2"):
        learner.update(rollout)
    assert learner.weights().checksum == before
    assert learner.version == 0


def test_an_unknown_framework_is_refused(model: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"learner\.framework is 'mxnet'"):
        build(model, learner_config(framework="mxnet"))
