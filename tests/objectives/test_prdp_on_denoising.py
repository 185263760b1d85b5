"""What differences of denoising errors tell of the log-ratio, and where PRDP's optimum on them lies: closed forms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from stub_policy import SCHEDULER as STUB

from prdp.diffusion.process import Draws
from prdp.diffusion.variance_preserving import VariancePreserving, alphas_cumprod
from prdp.objectives import build_objective
from prdp.worlds.mixtures.grammar import parse_all, prompt_at
from prdp.worlds.mixtures.mixture import GaussianMixtures
from prdp.worlds.mixtures.policy import SCHEDULER, exact_epsilon
from prdp.worlds.mixtures.world import reference_mixtures, rewards_of

KL_WEIGHT = 1.0


def parameters(mixtures: GaussianMixtures) -> torch.Tensor:
    """[n, 6 K], as `exact_epsilon` takes them."""
    parts = [mixtures.log_weights, mixtures.means[:, :, 0], mixtures.means[:, :, 1]]
    parts += [mixtures.covariances[:, :, row, column] for row, column in ((0, 0), (0, 1), (1, 1))]
    return torch.from_numpy(np.concatenate(parts, 1))


def expected_error(mixtures: GaussianMixtures, points: np.ndarray, abar: float) -> np.ndarray:
    """E over epsilon of |epsilon - E[epsilon | x_t]|^2, a sum over dims, for points [n, m, 2]; by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    noise, weight = np.array(list(itertools.product(nodes, nodes))), np.outer(weights, weights).ravel()
    noised = np.sqrt(abar) * points[:, :, None] + np.sqrt(1 - abar) * noise
    flat = torch.from_numpy(noised.reshape(-1, 2))
    signal, spread = (torch.full((len(flat),), value, dtype=torch.float64) for value in (abar**0.5, (1 - abar) ** 0.5))
    rows = parameters(mixtures).repeat_interleave(len(flat) // len(points), 0)
    output = exact_epsilon(flat, signal, spread, rows).numpy().reshape(noised.shape)
    return ((output - noise) ** 2).sum(-1) @ (weight / weight.sum())


def test_weighted_by_the_bound_the_difference_is_the_log_ratio_and_unweighted_a_blurred_one() -> None:
    """For the exact networks of a mixture and of its tilt; the bound is tight but for the thousand steps."""
    attributes = parse_all([prompt_at("train", index) for index in (0, 5000)])
    reference = reference_mixtures(attributes)
    tilted, _ = reference.tilted(rewards_of(attributes), KL_WEIGHT)
    points = tilted.sample(5, np.random.default_rng(0))
    log_ratio = tilted.log_density(points) - reference.log_density(points)
    abar = alphas_cumprod(SCHEDULER)
    times = np.arange(0, len(abar), 4)
    abar = abar[times]
    gains = np.array([expected_error(reference, points, one) - expected_error(tilted, points, one) for one in abar])
    ratio = abar / (1 - abar)
    bound = np.tensordot(0.5 * np.log(ratio[:-1] / ratio[1:]), 0.5 * (gains[1:] + gains[:-1]), 1)
    assert np.ptp(log_ratio) > 1
    np.testing.assert_allclose(bound, log_ratio, atol=0.02)
    for even, exact in zip(gains.mean(0), log_ratio, strict=True):
        assert np.corrcoef(even, exact)[0, 1] > 0.97
        assert 0.1 < np.polyfit(exact, even, 1)[0] < 0.25


@pytest.mark.parametrize("times", ["uniform", "stratified"])
def test_zero_loss_at_a_shifted_gaussian_whose_kl_weight_is_known(times: str) -> None:
    """A linear reward shifts a Gaussian N(m, s^2): the regression's optimum is the shift of KL weight 2 kappa s^2 beta.

    With kappa the mean over draws of (signal * spread / variance of x_t)^2. Noise that a group shares cancels in every
    pair, so that the optimum is met draw by draw.
    """
    beta, slope, mean, deviation, draws = 0.7, 1.3, 0.4, 0.8, 6
    process, groups, size = VariancePreserving(STUB), 2, 5
    group_ids, columns = np.repeat(np.arange(groups), size), np.arange(draws)
    clean = mean + deviation * np.random.default_rng(1).normal(size=groups * size)
    settings = Draws(process, 3, 0, draws, times)  # type: ignore[arg-type]
    errors, kappas = [], []
    for image, group in enumerate(group_ids):
        drawn, noise = settings.cells(np.full(draws, group), np.zeros(draws, np.int64), columns, (1, 1, 1))
        latents = torch.full((draws, 1, 1, 1), clean[image], dtype=torch.float64)
        noised, target = process.noised(latents, drawn, torch.from_numpy(noise).double())
        signal = process.noised(torch.ones_like(latents), drawn, torch.zeros_like(latents))[0].flatten().numpy()
        spread = np.sqrt(1 - signal**2)
        variance = (signal * deviation) ** 2 + spread**2
        kappas.append((signal * spread / variance) ** 2)
        errors.append((noised.flatten().numpy(), target.flatten().numpy(), signal, spread, variance))
    kappa = np.mean(kappas[:size], 1)[0], np.mean(kappas[size:], 1)[0]

    def denoising(shift: np.ndarray) -> np.ndarray:
        rows = [
            -((spread * (x - signal * (mean + moved)) / variance - target) ** 2)
            for (x, target, signal, spread, variance), moved in zip(errors, shift, strict=True)
        ]
        return np.array(rows)

    shift = slope / (2 * np.array(kappa) * beta)
    kl_weight = 2 * np.array(kappa) * deviation**2 * beta
    np.testing.assert_allclose(shift, deviation**2 * slope / kl_weight)
    objective = build_objective({"name": "prdp", "evidence": "denoising", "beta": beta, "clip_range": None})
    data = {
        "denoising_ref": denoising(np.zeros(len(clean))),
        "rewards": slope * clean,
        "group_ids": group_ids,
    }
    at_optimum, at_start, beyond = (
        objective.coefficients({"denoising": denoising(factor * shift[group_ids])}, data) for factor in (1.0, 0.0, 1.5)
    )
    assert at_optimum.loss == pytest.approx(0, abs=1e-18)
    assert at_optimum.metrics["prediction_size"] == pytest.approx(1)
    assert at_start.metrics["prediction_size"] == 0
    assert beyond.loss == pytest.approx(at_start.loss / 4)
