"""The closed forms against numerical integration, autograd and samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.diffusion import build_policy, build_sampler
from prdp.evidence.trajectory import TrajectoryRecorder
from prdp.types import PromptBatch
from prdp.worlds.mixtures.distance import (
    discretisation_error,
    distance_to_optimum,
    energy_distance,
    kl_weight_of,
)
from prdp.worlds.mixtures.grammar import parse_all, prompt_at
from prdp.worlds.mixtures.mixture import GaussianMixtures, QuadraticRewards
from prdp.worlds.mixtures.policy import exact_epsilon
from prdp.worlds.mixtures.world import reference_mixtures, rewards_of

TEXTS = tuple(prompt_at("heldout", number) for number in (0, 12_345, 99_999))
FAMILY = ModelConfig(family="gaussian_mixtures", path="gaussian_mixtures", device="cpu")
FULL = LearnerConfig(mode="full")
STEPS = SamplerConfig(
    steps=20, guidance_scale=1.0, timestep_spacing="trailing", deterministic_final_steps=1, microbatch=4096
)


def world() -> tuple[GaussianMixtures, QuadraticRewards]:
    attributes = parse_all(TEXTS)
    return reference_mixtures(attributes), rewards_of(attributes, prompt_offset=0.7)


@pytest.mark.slow
def test_the_tilted_mixture_is_what_integration_on_a_grid_gives() -> None:
    mixtures, rewards = world()
    kl_weight = 0.4
    tilted, log_z = mixtures.tilted(rewards, kl_weight)
    axis = np.linspace(-9.0, 9.0, 721)
    area = (axis[1] - axis[0]) ** 2
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(1, -1, 2)
    for row in range(len(mixtures)):
        one = slice(row, row + 1)
        prompt = GaussianMixtures(mixtures.log_weights[one], mixtures.means[one], mixtures.covariances[one])
        optimum = GaussianMixtures(tilted.log_weights[one], tilted.means[one], tilted.covariances[one])
        reward = QuadraticRewards(rewards.constant[one], rewards.linear[one], rewards.curvature[one])
        scores, density = reward(grid)[0], np.exp(prompt.log_density(grid))[0]
        unnormalised = density * np.exp(scores / kl_weight)
        z = unnormalised.sum() * area
        assert density.sum() * area == pytest.approx(1.0, abs=1e-9)
        assert np.log(z) == pytest.approx(log_z[row], abs=1e-9)
        np.testing.assert_allclose(np.exp(optimum.log_density(grid))[0], unnormalised / z, atol=1e-9)
        assert optimum.expectation(reward)[0] == pytest.approx((unnormalised / z * scores).sum() * area, abs=1e-8)


def test_a_tilt_needs_a_positive_weight() -> None:
    mixtures, rewards = world()
    with pytest.raises(ValueError, match="kl_weight is 0"):
        mixtures.tilted(rewards, 0.0)


def test_samples_have_the_means_and_covariances_of_the_mixture() -> None:
    mixtures, _ = world()
    points = mixtures.sample(200_000, np.random.default_rng(0))
    weights = np.exp(mixtures.log_weights)
    means = np.einsum("nk,nki->ni", weights, mixtures.means)
    second = mixtures.covariances + mixtures.means[..., :, None] * mixtures.means[..., None, :]
    np.testing.assert_allclose(points.mean(1), means, atol=0.02)
    np.testing.assert_allclose(
        np.einsum("nmi,nmj->nij", points, points) / points.shape[1],
        np.einsum("nk,nkij->nij", weights, second),
        atol=0.05,
    )


def test_the_exact_epsilon_is_the_score_of_the_noised_mixture() -> None:
    mixtures, _ = world()
    policy = build_policy(FAMILY, FULL, seed=0, keep_reference=False)
    states = policy.encode(TEXTS).fields["states"][:, 6:].double()
    points = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    signal = torch.tensor([0.99, 0.6, 0.05], dtype=torch.float64)
    spread = (1.0 - signal.square()).sqrt()
    for row in range(3):
        scale = float(signal[row])
        means = torch.from_numpy(scale * mixtures.means[row])
        covariances = torch.from_numpy(scale**2 * mixtures.covariances[row]) + spread[row] ** 2 * torch.eye(2)
        noised = torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(logits=torch.from_numpy(mixtures.log_weights[row])),
            torch.distributions.MultivariateNormal(means, covariances),
        )
        point = points[row].clone().requires_grad_()
        (score,) = torch.autograd.grad(noised.log_prob(point), point)
        one = slice(row, row + 1)
        epsilon = exact_epsilon(points[one], signal[one], spread[one], states[one])
        # The states that the policy is handed are float32.
        torch.testing.assert_close(epsilon[0], -spread[row] * score, rtol=1e-5, atol=1e-6)


def test_energy_distance_tells_equal_from_shifted() -> None:
    rng = np.random.default_rng(0)
    points = rng.standard_normal((2, 600, 2))
    assert np.abs(energy_distance(points, rng.standard_normal((2, 600, 2)))).max() < 0.02
    # Points a distance d apart have an energy distance of 2 d.
    shifted = np.array([3.0, 4.0])
    assert energy_distance(np.zeros((1, 5, 2)), np.zeros((1, 5, 2)) + shifted) == pytest.approx(10.0)


def test_the_start_is_the_reference_and_its_chain_is_nearly_the_mixture() -> None:
    batch = PromptBatch(0, 0, TEXTS, tuple({} for _ in TEXTS))
    rollout = build_sampler(FAMILY, FULL, STEPS, seed=0, recorder=TrajectoryRecorder()).sample(batch, 600, seed=0)
    assert not rollout.stored["log_ratio"].any()
    error = discretisation_error(rollout, kl_weight=0.5)
    assert error["energy_distance"] < 0.03
    assert error["log_z_chain"] == pytest.approx(error["log_z"], abs=0.2)
    found = distance_to_optimum(rollout, kl_weight=0.5)
    assert found["kl"] == 0.0
    assert found["reward"] == pytest.approx(found["reward_reference"], abs=0.1)
    assert found["kl_to_optimum"] == pytest.approx(error["log_z"] - found["reward"] / 0.5)


@pytest.mark.slow
def test_a_policy_that_is_not_the_reference_has_the_kl_of_its_steps() -> None:
    sampler = build_sampler(FAMILY, FULL, STEPS, seed=0, recorder=TrajectoryRecorder())
    policy = sampler._policy
    weights = policy.weights.export(1)
    weights.tensors["correction.4.bias"][:] = 0.3
    sampler.load_weights(type(weights).of(1, weights.tensors))
    batch = PromptBatch(0, 0, TEXTS, tuple({} for _ in TEXTS))
    rollout = sampler.sample(batch, 2000, seed=0)
    # A shift of every output by 0.3 in both dims has a KL of 0.3^2 kappa / 2 per dim and step, whatever the point.
    expected = 0.3**2 * sampler._transitions.sensitivity.sum()
    assert distance_to_optimum(rollout, kl_weight=0.5)["kl"] == pytest.approx(expected, rel=0.05)


def test_beta_of_means_is_the_kl_weight_times_dims_and_steps() -> None:
    assert kl_weight_of(19.0, 19) == 0.5
    assert kl_weight_of(1.0, 19, "sum") == 0.5
