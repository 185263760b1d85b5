"""Direct Group Preference Optimization on a flow against the authors' code, and its trust region by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flow_outputs import FlowOutputs
from golden import GROUPS, SIZE, STEPS, batch, evaluate

from prdp.objectives import build_objective


@pytest.mark.parametrize(
    ("knobs", "whole", "wave"),
    [
        ({"beta": 100.0, "clip_range": None}, 0.44751820946003823, -0.012829827950772612),
        ({"beta": 10.0, "clip_range": 0.05}, 0.3396146498636903, -0.013745222328336887),
        (
            {"beta": 200.0, "clip_range": 0.02, "frozen_reference": False},
            0.3337813637321729,
            -0.00482475315175444,
        ),
    ],
)
def test_the_gradient_of_dgpo_equals_the_authors_code(knobs: dict[str, Any], whole: float, wave: float) -> None:
    """Numbers of their training script (Luo-Yihong/DGPO, 4/2026) in float64, a draw at a time.

    The lines from the reference to the loss, compute_group_dgpo_loss_allreduce and the tracker of statistics ran on
    these outputs in one process, with both groups in one batch; the old policy's are those of their moving average.
    Their loss has another value, which nothing depends on.
    """
    objective = build_objective({"name": "dgpo", "kl": 0.3, "advantage_clip": 1.0, **knobs})
    result, gradient = FlowOutputs.drawn(shared=True).evaluated(objective)
    assert np.abs(gradient).sum() == pytest.approx(whole, rel=1e-9)
    assert np.vdot(gradient, np.sin(np.arange(gradient.size))) == pytest.approx(wave, rel=1e-9)
    assert (result.metrics["clipfrac"] > 0) == (knobs["clip_range"] is not None)


def test_dgpo_is_a_logistic_loss_of_group_gains() -> None:
    arrays = batch()
    result = evaluate("dgpo", arrays, beta=7.0, clip_range=None, kl=0.4, std="none")
    rewards = arrays["rewards"].reshape(GROUPS, SIZE)
    advantages = rewards - rewards.mean(1, keepdims=True)
    gains = (arrays["denoising"] - arrays["denoising_ref"]).reshape(GROUPS, SIZE, STEPS)
    margin = 7.0 * (advantages[..., None] * gains).mean(1)
    expected = np.log1p(np.exp(-margin)).mean() / 7.0 + 0.4 * arrays["kl_ref"].mean()
    assert result.loss == pytest.approx(expected, rel=1e-12)
    assert result.metrics["group_weight"] == pytest.approx((1 / (1 + np.exp(margin))).mean())


def test_what_leaves_the_trust_region() -> None:
    """Beyond 1 +- .1, the way that the advantage asks for: the first draw of the good image, the second of the bad."""
    ratios = np.array([[1.2, 0.8, 1.05], [1.2, 0.8, 0.95], [1.2, 0.8, 1.0]])
    arrays = {
        "denoising": -1.0 + np.log(ratios),
        "denoising_ref": -np.ones((3, 3)),
        "denoising_old": -np.ones((3, 3)),
        "rewards": np.array([1.0, -1.0, 0.0]),
        "group_ids": np.zeros(3, np.int64),
    }
    results = [
        evaluate("dgpo", arrays, clip_range=clip, kl=0.0, std="none", beta=2.0).tables["denoising"]
        for clip in (0.1, None)
    ]
    kept = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 1]])
    np.testing.assert_allclose(results[0], kept * results[1], rtol=1e-12)
    assert results[1][:2].all() and not results[1][2].any()
