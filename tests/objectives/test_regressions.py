"""REBEL against its paper's formula, and PRDP with other pairs and reductions than the paper's listing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from golden import GROUPS, SIZE, STEPS, batch, evaluate, numeric_tables

PAIRS = {"all": list(itertools.combinations(range(SIZE), 2)), "disjoint": [(0, 1), (2, 3)], "one": [(0, 1)]}


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("step_reduction", ["sum", "mean"])
def test_rebel(pairs: str, step_reduction: str) -> None:
    arrays, eta, means = batch(), 0.3, []
    for group in range(GROUPS):
        errors = []
        for left, right in PAIRS[pairs]:
            a, b = group * SIZE + left, group * SIZE + right
            moved = arrays["log_importance"]
            to_old = [sum(moved[image]) / (1 if step_reduction == "sum" else STEPS) for image in (a, b)]
            errors.append(((to_old[0] - to_old[1]) / eta - (arrays["rewards"][a] - arrays["rewards"][b])) ** 2)
        means.append(np.mean(errors))
    knobs = {"eta": eta, "pairs": pairs, "step_reduction": step_reduction}
    result = evaluate("rebel", arrays, **knobs)
    assert result.loss == pytest.approx(np.mean(means), rel=1e-12)
    numeric = numeric_tables("rebel", arrays, **knobs)["log_importance"]
    np.testing.assert_allclose(result.tables["log_importance"], numeric, atol=1e-7)


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("step_reduction", ["sum", "mean"])
@pytest.mark.parametrize("clip_range", [0.03, None])
def test_prdp(pairs: str, step_reduction: str, clip_range: float | None) -> None:
    arrays, beta, means, tied = batch(), 0.7, [], 0
    arrays["rewards"][1] = arrays["rewards"][0]
    low, high = (arrays["log_ratio_old"] + sign * (clip_range or np.inf) for sign in (-1, 1))
    scores = arrays["log_ratio"].sum(1), np.clip(arrays["log_ratio"], low, high).sum(1)
    for group in range(GROUPS):
        errors = []
        for left, right in PAIRS[pairs]:
            a, b = group * SIZE + left, group * SIZE + right
            target = (arrays["rewards"][a] - arrays["rewards"][b]) / beta
            if target:
                divisor = 1 if step_reduction == "sum" else STEPS
                errors.append(max(((score[a] - score[b]) / divisor - target) ** 2 for score in scores))
        means += [np.mean(errors)] if errors else []
        tied += not errors
    knobs = {"beta": beta, "clip_range": clip_range, "pairs": pairs, "step_reduction": step_reduction}
    result = evaluate("prdp", arrays, **knobs)
    assert result.loss == pytest.approx(np.mean(means), rel=1e-12)
    assert result.metrics["groups_tied"] == tied == (pairs == "one")
    beyond = np.abs(arrays["log_ratio"] - arrays["log_ratio_old"]) > (clip_range or np.inf)
    assert result.metrics["clipfrac"] == pytest.approx(beyond.mean())


def test_the_sum_is_the_mean_with_beta_divided_by_the_steps() -> None:
    arrays = batch()
    mean = evaluate("prdp", arrays, beta=0.5, clip_range=0.03)
    total = evaluate("prdp", arrays, beta=0.5 / STEPS, clip_range=0.03, step_reduction="sum")
    np.testing.assert_allclose(total.tables["log_ratio"], STEPS**2 * mean.tables["log_ratio"], rtol=1e-12)


def test_rebel_is_prdp_without_clip_where_the_old_policy_is_the_reference() -> None:
    arrays, beta = batch(), 0.3
    arrays |= {"log_ratio": arrays["log_importance"], "log_ratio_old": np.zeros((GROUPS * SIZE, STEPS))}
    prdp = evaluate("prdp", arrays, beta=beta, clip_range=None, step_reduction="sum")
    rebel = evaluate("rebel", arrays, eta=1 / beta)
    assert rebel.loss == pytest.approx(beta**2 * prdp.loss, rel=1e-12)
    np.testing.assert_allclose(rebel.tables["log_importance"], beta**2 * prdp.tables["log_ratio"], rtol=1e-9)
