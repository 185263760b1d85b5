"""Gaussian mixtures in the plane, many at once, and their tilt by the exponential of a quadratic reward."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prdp.types import Float64


@dataclass(frozen=True)
class QuadraticRewards:
    """r(x) = constant + linear . x - x^T curvature x / 2, one for each of n prompts.

    Attributes:
        constant: float64 [n].
        linear: float64 [n, 2].
        curvature: float64 [n, 2, 2], symmetric and positive semi-definite, so that every tilt can be normalised.
    """

    constant: Float64
    linear: Float64
    curvature: Float64

    def __call__(self, points: Float64) -> Float64:
        """Rewards [n, m] of points [n, m, 2]."""
        bent = np.einsum("nmi,nij,nmj->nm", points, self.curvature, points)
        straight = self.constant[:, None] + np.einsum("nmi,ni->nm", points, self.linear)
        return np.asarray(straight - 0.5 * bent, np.float64)


@dataclass(frozen=True)
class GaussianMixtures:
    """n mixtures of K Gaussians in the plane.

    Attributes:
        log_weights: float64 [n, K], normalised.
        means: float64 [n, K, 2].
        covariances: float64 [n, K, 2, 2].
    """

    log_weights: Float64
    means: Float64
    covariances: Float64

    def __len__(self) -> int:
        return len(self.means)

    def log_density(self, points: Float64) -> Float64:
        """Log densities [n, m] of points [n, m, 2]."""
        offsets = points[:, :, None] - self.means[:, None]
        squares = np.einsum("nmki,nkij,nmkj->nmk", offsets, np.linalg.inv(self.covariances), offsets)
        logs = -0.5 * squares - 0.5 * np.linalg.slogdet(self.covariances)[1][:, None] - np.log(2.0 * np.pi)
        return _log_sum_exp(self.log_weights[:, None] + logs)

    def sample(self, count: int, rng: np.random.Generator) -> Float64:
        """Points [n, count, 2]."""
        edges = np.cumsum(np.exp(self.log_weights), axis=1)
        draws = rng.random((len(self), count))
        chosen = np.minimum((draws[:, :, None] > edges[:, None]).sum(-1), edges.shape[1] - 1)
        rows = np.arange(len(self))[:, None]
        spread = np.linalg.cholesky(self.covariances)[rows, chosen]
        noise = rng.standard_normal((len(self), count, 2))
        return np.asarray(self.means[rows, chosen] + np.einsum("nmij,nmj->nmi", spread, noise), np.float64)

    def expectation(self, rewards: QuadraticRewards) -> Float64:
        """E[r(x)] of each mixture, [n]."""
        linear = np.einsum("nki,ni->nk", self.means, rewards.linear)
        second = self.covariances + self.means[..., :, None] * self.means[..., None, :]
        bent = np.einsum("nkij,nij->nk", second, rewards.curvature)
        varying = (np.exp(self.log_weights) * (linear - 0.5 * bent)).sum(1)
        return np.asarray(rewards.constant + varying, np.float64)

    def tilted(self, rewards: QuadraticRewards, kl_weight: float) -> tuple[GaussianMixtures, Float64]:
        """The mixtures proportional to p(x) exp(r(x) / kl_weight), and the logs of their normalisers Z, [n].

        A Gaussian times the exponential of a quadratic is a Gaussian again: precisions and precision-weighted means
        add up, and each component's weight is multiplied by its own normaliser.

        Raises:
            ValueError: kl_weight is not above 0.
        """
        if not kl_weight > 0:
            raise ValueError(f"kl_weight is {kl_weight}, expected a number above 0")
        precisions = np.linalg.inv(self.covariances)
        forces = np.einsum("nkij,nkj->nki", precisions, self.means)
        new_precisions = precisions + rewards.curvature[:, None] / kl_weight
        new_forces = forces + rewards.linear[:, None] / kl_weight
        covariances: Float64 = np.asarray(np.linalg.inv(new_precisions), np.float64)
        means: Float64 = np.einsum("nkij,nkj->nki", covariances, new_forces)
        volumes = 0.5 * (np.linalg.slogdet(precisions)[1] - np.linalg.slogdet(new_precisions)[1])
        energies = 0.5 * ((means * new_forces).sum(-1) - (self.means * forces).sum(-1))
        log_weights = self.log_weights + volumes + energies
        log_total = _log_sum_exp(log_weights)
        tilted = GaussianMixtures(log_weights - log_total[:, None], means, covariances)
        return tilted, log_total + rewards.constant / kl_weight


def _log_sum_exp(values: Float64) -> Float64:
    """Over the last axis."""
    largest = values.max(-1, keepdims=True)
    return np.asarray(np.log(np.exp(values - largest).sum(-1)) + largest[..., 0], np.float64)
