"""What a prompt means: smooth functions from its attributes to the reference's mixture and to the reward."""

from __future__ import annotations

import numpy as np

from prdp.types import Float64, Int64
from prdp.worlds.mixtures.grammar import ATTRIBUTES, VALUES
from prdp.worlds.mixtures.mixture import GaussianMixtures, QuadraticRewards

COMPONENTS = 3
_RADIUS = 1.5
_MIXTURE_NUMBERS, _REWARD_NUMBERS = 6 * COMPONENTS, 5


class _Waves:
    """Sine waves of random direction over the attributes, in [-1, 1]; the same for ever."""

    def __init__(self, seed: int, count: int) -> None:
        # The legacy generator, because its streams are frozen: other numbers would be another world.
        rng = np.random.RandomState(seed)
        self._directions = rng.uniform(-1.0, 1.0, (len(ATTRIBUTES), count))
        self._phases = rng.uniform(-np.pi, np.pi, count)

    def __call__(self, attributes: Int64) -> Float64:
        return np.asarray(np.sin(features(attributes) @ self._directions + self._phases), np.float64)


_MIXTURE_WAVES, _REWARD_WAVES, _LEVEL_WAVES = _Waves(1, _MIXTURE_NUMBERS), _Waves(2, _REWARD_NUMBERS), _Waves(3, 1)


def features(attributes: Int64) -> Float64:
    """The attributes [n, 6] scaled to [-1, 1], float64 [n, 6]."""
    return np.asarray(2.0 * attributes / (VALUES - 1) - 1.0, np.float64)


def reference_mixtures(attributes: Int64) -> GaussianMixtures:
    """The distribution that the reference model has learned, for prompts of attributes [n, 6].

    Three components stand around a circle of radius 1.5 and wander by up to 0.6 along each axis; their standard
    deviations along turning axes are 0.25 to 0.6, their weights differ by up to a factor of e^1.6.
    """
    waves = _MIXTURE_WAVES(attributes).reshape(-1, COMPONENTS, 6)
    angles = 2.0 * np.pi * np.arange(COMPONENTS) / COMPONENTS
    means = _RADIUS * np.stack([np.cos(angles), np.sin(angles)], -1) + 0.6 * waves[..., :2]
    turned = np.pi / 2.0 * waves[..., 2]
    axes = np.stack(
        [np.stack([np.cos(turned), -np.sin(turned)], -1), np.stack([np.sin(turned), np.cos(turned)], -1)], -2
    )
    variances = (0.425 + 0.175 * waves[..., 3:5]) ** 2
    logits = 0.8 * waves[..., 5]
    log_weights = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return GaussianMixtures(log_weights, means, np.einsum("nkij,nkj,nklj->nkil", axes, variances, axes))


def rewards_of(attributes: Int64, prompt_offset: float = 0.0) -> QuadraticRewards:
    """The reward of prompts of attributes [n, 6]: a pull of up to 0.8 along each axis, and a bend of rank 1 or 2.

    Args:
        prompt_offset: largest number that is added to all rewards of a prompt. It makes prompts differ in how well they
            can be scored, as they do under learned rewards, and leaves the optimum where it is.
    """
    waves = _REWARD_WAVES(attributes)
    bend = 0.4 * waves[:, 2:4]
    curvature = bend[:, :, None] * bend[:, None] + (0.1 * (1.0 + waves[:, 4]))[:, None, None] * np.eye(2)
    return QuadraticRewards(prompt_offset * _LEVEL_WAVES(attributes)[:, 0], 0.8 * waves[:, :2], curvature)
