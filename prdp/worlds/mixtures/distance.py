"""How far a policy is from the optimum: its samples, and its log-ratios, against the closed form."""

from __future__ import annotations

import numpy as np

from prdp.types import Float64, Rollout
from prdp.worlds.mixtures.coordinates import decode_points
from prdp.worlds.mixtures.grammar import parse_all
from prdp.worlds.mixtures.world import reference_mixtures, rewards_of

DIMENSIONS = 2


def kl_weight_of(beta: float, steps: int, step_reduction: str = "mean") -> float:
    """The weight of the KL, in units of reward per nat of a whole trajectory, that `objective.beta` of PRDP stands for.

    Log-ratios are means over the two latent dims and, with step_reduction 'mean', over the steps that have one: what is
    regressed on r / beta is 1 / (2 steps) of the trajectory's log-ratio.

    Args:
        steps: those that draw noise and are learned from.
    """
    return beta / (DIMENSIONS * (steps if step_reduction == "mean" else 1))


def distance_to_optimum(
    rollout: Rollout, kl_weight: float, prompt_offset: float = 0.0, seed: int = 0
) -> dict[str, float]:
    """Compare a policy's rollout with pi*, proportional to p exp(r / kl_weight); means over its prompts.

    Args:
        rollout: with trajectories, of many images per prompt.
        prompt_offset: of the reward.
        seed: of the samples of pi*.

    Returns:
        reward, and reward_reference and reward_optimum in closed form;
        kl: of the policy's trajectories to the reference's, nats, from the sampled log-ratios;
        objective: reward - kl_weight * kl, and objective_optimum: kl_weight * log Z, which none exceeds;
        kl_to_optimum: their difference in nats, KL[policy || pi*] of trajectories (`kl_to_optimum_error`: one standard
        error over prompts);
        energy_distance: of the samples to as many of pi*, and energy_distance_reference: of the reference's.
    """
    attributes = parse_all(rollout.prompts.texts)
    mixtures, rewards = reference_mixtures(attributes), rewards_of(attributes, prompt_offset)
    optimum, log_z = mixtures.tilted(rewards, kl_weight)
    points = _points(rollout)
    scores = rewards(points).mean(1)
    path = DIMENSIONS * rollout.numbers("log_ratio").astype(np.float64).sum(1)
    kl = path.reshape(points.shape[:2]).mean(1)
    gap = log_z - (scores / kl_weight - kl)
    rng = np.random.default_rng(seed)
    ideal, other = optimum.sample(points.shape[1], rng), mixtures.sample(points.shape[1], rng)
    return {
        "reward": float(scores.mean()),
        "reward_reference": float(mixtures.expectation(rewards).mean()),
        "reward_optimum": float(optimum.expectation(rewards).mean()),
        "kl": float(kl.mean()),
        "objective": float((scores - kl_weight * kl).mean()),
        "objective_optimum": float(kl_weight * log_z.mean()),
        "kl_to_optimum": float(gap.mean()),
        "kl_to_optimum_error": float(gap.std(ddof=1) / np.sqrt(len(gap))) if len(gap) > 1 else float("nan"),
        "energy_distance": float(energy_distance(points, ideal).mean()),
        "energy_distance_reference": float(energy_distance(other, ideal).mean()),
    }


def discretisation_error(rollout: Rollout, kl_weight: float, seed: int = 0) -> dict[str, float]:
    """What the chain of finitely many steps does to the reference, from a rollout of the reference.

    The chain's own optimum is its distribution tilted, whose log Z is estimated from its samples. What lies between
    that and the closed form is not the policy's fault.

    Returns:
        energy_distance: of the chain's samples to as many of the exact mixture; log_z, in closed form, and log_z_chain.
    """
    attributes = parse_all(rollout.prompts.texts)
    mixtures, rewards = reference_mixtures(attributes), rewards_of(attributes)
    points = _points(rollout)
    exact = mixtures.sample(points.shape[1], np.random.default_rng(seed))
    tilt = rewards(points) / kl_weight
    largest = tilt.max(1, keepdims=True)
    chain = np.log(np.exp(tilt - largest).mean(1)) + largest[:, 0]
    return {
        "energy_distance": float(energy_distance(points, exact).mean()),
        "log_z": float(mixtures.tilted(rewards, kl_weight)[1].mean()),
        "log_z_chain": float(chain.mean()),
    }


def energy_distance(left: Float64, right: Float64) -> Float64:
    """2 E|x - y| - E|x - x'| - E|y - y'| of samples [n, m, 2] and [n, k, 2], unbiased, [n].

    0 on average for equal distributions (Székely and Rizzo 2013), so a single value may lie below.
    """

    def distances(one: Float64, two: Float64) -> Float64:
        return np.asarray(np.linalg.norm(one[:, None] - two[None], axis=-1), np.float64)

    values = [
        2.0 * distances(x, y).mean()
        - distances(x, x).sum() / (len(x) * (len(x) - 1))
        - distances(y, y).sum() / (len(y) * (len(y) - 1))
        for x, y in zip(left, right, strict=True)
    ]
    return np.array(values, np.float64)


def _points(rollout: Rollout) -> Float64:
    points = decode_points(np.asarray(rollout.images))
    return points.reshape(len(rollout.prompts), rollout.images_per_prompt, DIMENSIONS)
