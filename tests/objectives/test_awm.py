"""Advantage Weighted Matching on a flow against the authors' code, and its weights of noise by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flow_outputs import FlowOutputs
from golden import SIZE, batch, evaluate
from stub_policy import SCHEDULER

from prdp.diffusion.variance_preserving import VariancePreserving, alphas_cumprod
from prdp.evidence import DenoisingLikelihood
from prdp.evidence.denoising import Noised
from prdp.objectives import build_objective


@pytest.mark.parametrize(
    ("weighting", "clip_range", "clipped", "loss", "whole", "wave"),
    [
        ("ghuber", 1.0, 0, 0.052859700681891275, 0.7409603192676049, 0.020823962287287875),
        ("ghuber", 0.05, 7, 0.05860096585088988, 0.656179394243567, 0.06573665100894699),
        ("huber", 0.05, 3, 0.048861913632671984, 0.41382904928788683, 0.018273372596980995),
        ("t_squared", 0.02, 4, 0.04943429772050456, 0.3841329331487393, 0.029785690982220565),
        ("t", 0.02, 5, 0.05451758369853639, 0.41690236077488746, 0.02474817459566345),
        ("uniform", 0.02, 10, 0.06456900389519096, 0.4995282887750787, 0.010474649027074928),
    ],
)  # fmt: skip
def test_awm_equals_the_authors_code(
    weighting: str, clip_range: float, clipped: int, loss: float, whole: float, wave: float
) -> None:
    """Numbers of their training script (scxue/advantage_weighted_matching, 3/2026) in float64.

    Its log-prob, tracker of statistics and loss of type exp_first ran on these outputs, with the second of an epoch's
    updates: the old log-probs are those of `sampled`.
    """
    knobs = {"beta": 0.3, "beta_old": 0.7, "advantage_clip": 1.5, "clip_range": clip_range}
    objective = build_objective({"name": "awm", "weighting": weighting, **knobs})
    result, gradient = FlowOutputs.drawn(shared=False).evaluated(objective)
    assert result.loss == pytest.approx(loss, rel=1e-9)
    assert np.abs(gradient).sum() == pytest.approx(whole, rel=1e-9)
    assert np.vdot(gradient, np.sin(np.arange(gradient.size))) == pytest.approx(wave, rel=1e-9)
    assert result.metrics == {"groups_tied": 0.0, "clipfrac": pytest.approx(clipped / 12)}


def test_the_noise_level_of_other_processes_and_errors_of_nothing() -> None:
    """sqrt(1 - abar) stands for sigma; at an error of 0 the gradient is 0 and not infinite times 0."""
    rng = np.random.default_rng(0)
    clean, noise, near = (torch.from_numpy(rng.normal(size=(4, 2, 2, 2))) for _ in range(3))
    times, process = np.array([10.0, 500.0, 990.0, 500.0]), VariancePreserving(SCHEDULER)
    cells = Noised(process, clean, times, *process.noised(clean, times, noise))
    near[3] = 0.0
    output = (noise + 0.1 * near).requires_grad_()
    error = 0.01 * near.square().mean((1, 2, 3))
    level = torch.from_numpy(np.sqrt(1 - alphas_cumprod(SCHEDULER)[times.astype(int)]))
    rooted = 4 * level * ((error + 1e-10) ** 0.25 - 1e-10**0.25)
    squared, root = DenoisingLikelihood(weighting="t_squared"), DenoisingLikelihood()
    for evidence, expected in ((squared, level**2 * error), (root, rooted)):
        found = evidence.channel("log_likelihood", output, {}, cells)
        torch.testing.assert_close(found, -expected, rtol=1e-9, atol=1e-15)
        [gradient] = torch.autograd.grad(found.sum(), output)
        assert gradient.isfinite().all() and not gradient[3].any() and gradient[0].all()


def test_at_the_first_update_the_gradient_is_the_advantage() -> None:
    arrays = {**batch(), "log_likelihood": batch()["log_likelihood_sampled"]}
    result = evaluate("awm", arrays, beta=0.0, beta_old=0.0, std="none", advantage_clip=2.0, clip_range=1e-6)
    rewards = arrays["rewards"].reshape(-1, SIZE)
    advantages = (rewards - rewards.mean(1, keepdims=True)).clip(-2, 2).ravel() / 2
    table = result.tables["log_likelihood"]
    np.testing.assert_allclose(table, np.repeat(-advantages[:, None], table.shape[1], 1) / table.size, rtol=1e-12)
    assert result.tables.keys() == {"log_likelihood"}
