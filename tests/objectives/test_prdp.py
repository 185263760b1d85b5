"""The loss against values derived by hand, closed forms, and a policy that is optimal by construction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from prdp.objectives import build_objective


def random_batch(seed: int, groups: int = 3, size: int = 5, steps: int = 4) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    count = groups * size
    old = rng.normal(size=(count, steps)) * 0.1
    return old + rng.normal(size=old.shape) * 0.05, old, rng.normal(size=count), np.repeat(np.arange(groups), size)


@dataclass(frozen=True)
class Result:
    loss: float
    table: np.ndarray
    metrics: dict[str, float]


def coefficients(
    name: str, log_ratio: Any, old: Any, rewards: Any, groups: Any, *, step_weights: Any = None, **knobs: Any
) -> Result:
    """The objective at one channel, `log_ratio`."""
    data = {"log_ratio_old": old, "rewards": rewards, "group_ids": groups}
    result = build_objective({"name": name, **knobs}).coefficients({"log_ratio": log_ratio}, data, step_weights)
    return Result(result.loss, result.tables["log_ratio"], result.metrics)


def test_one_pair_by_hand() -> None:
    # Mean log-ratios 0.3 and 0.1, so D = 0.2; rewards differ by 0.5 and beta is 2, so the target is 0.25.
    # Clipped around 0 to 0.15: means 0.15 and 0.05, so Dc = 0.1 and the larger error is 0.15^2.
    log_ratio = np.array([[0.2, 0.4], [0.2, 0.0]])
    loss = coefficients(
        "prdp", log_ratio, np.zeros((2, 2)), [1.0, 0.5], [0, 0], beta=2.0, clip_range=None
    )
    assert loss.loss == pytest.approx(0.05**2)
    assert loss.metrics["prediction_size"] == pytest.approx(0.2 / 0.25)
    np.testing.assert_allclose(loss.table, [[-0.05, -0.05], [0.05, 0.05]])
    clipped = coefficients("prdp", log_ratio, np.zeros((2, 2)), [1.0, 0.5], [0, 0], beta=2.0, clip_range=0.15)
    # Image 0: both steps clip to 0.15; image 1: 0.15 and 0.0. Dc = 0.15 - 0.075 = 0.075, error 0.175^2.
    assert clipped.loss == pytest.approx(0.175**2)
    # Only the unclipped step of image 1 still moves the clipped score.
    np.testing.assert_allclose(clipped.table, [[0.0, 0.0], [0.0, 0.175]])


def test_the_kl_is_added_and_tells_apart_what_differences_do_not() -> None:
    log_ratio, old, rewards, groups = random_batch(3)
    kl_ref = np.random.default_rng(4).random(log_ratio.shape)
    data = {"log_ratio_old": old, "rewards": rewards, "group_ids": groups}
    plain, held = (
        build_objective({"name": "prdp", "beta": 0.5, "clip_range": None, "kl": kl}).coefficients(channels, data)
        for kl, channels in ((0.0, {"log_ratio": log_ratio}), (0.3, {"log_ratio": log_ratio, "kl_ref": kl_ref}))
    )
    assert held.loss == pytest.approx(plain.loss + 0.3 * kl_ref.mean())
    np.testing.assert_array_equal(held.tables["log_ratio"], plain.tables["log_ratio"])
    np.testing.assert_allclose(held.tables["kl_ref"], np.full(log_ratio.shape, 0.3 / log_ratio.size))
    for group in np.unique(groups):
        assert abs(plain.tables["log_ratio"][groups == group].sum()) < 1e-12


def test_without_clip_the_loss_is_twice_the_sample_variance_of_u() -> None:
    log_ratio, old, rewards, groups = random_batch(0)
    beta = 0.7
    result = coefficients("prdp", log_ratio, old, rewards, groups, beta=beta, clip_range=None)
    u = log_ratio.mean(1) - rewards / beta
    assert result.loss == pytest.approx(np.mean([2 * u[groups == g].var(ddof=1) for g in range(3)]), rel=1e-12)


def test_gradient_at_the_old_policy_is_group_relative_reinforce() -> None:
    log_ratio, _, rewards, groups = random_batch(1)
    beta, size, steps = 0.3, 5, 4
    result = coefficients("prdp", log_ratio, log_ratio, rewards, groups, beta=beta, clip_range=1e-3)
    u = log_ratio.mean(1) - rewards / beta
    centred = u - np.array([u[groups == g].mean() for g in groups])
    expected = 4.0 / ((size - 1) * steps) * centred / 3
    np.testing.assert_allclose(result.table, np.repeat(expected[:, None], steps, axis=1), rtol=1e-12)


def test_coefficients_are_the_gradient() -> None:
    log_ratio, old, rewards, groups = random_batch(2)
    result = coefficients("prdp", log_ratio, old, rewards, groups, beta=0.5, clip_range=0.03)
    numeric = np.zeros_like(log_ratio)
    for index in np.ndindex(*log_ratio.shape):
        step = np.zeros_like(log_ratio)
        step[index] = 1e-6
        up, down = (
            coefficients("prdp", log_ratio + sign * step, old, rewards, groups, beta=0.5, clip_range=0.03).loss
            for sign in (1, -1)
        )
        numeric[index] = (up - down) / 2e-6
    np.testing.assert_allclose(result.table, numeric, atol=1e-6)
    unclipped = coefficients("prdp", log_ratio, old, rewards, groups, beta=0.5, clip_range=None)
    assert not np.allclose(result.table, unclipped.table), "the clip must be active for this test to say anything"


def test_groups_never_mix_and_their_order_does_not_matter() -> None:
    log_ratio, old, rewards, groups = random_batch(3)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(groups))
    plain = coefficients("prdp", log_ratio, old, rewards, groups, beta=0.5, clip_range=0.03)
    mixed = coefficients("prdp", log_ratio[order], old[order], rewards[order], groups[order], beta=0.5, clip_range=0.03)
    assert mixed.loss == pytest.approx(plain.loss, rel=1e-12)
    np.testing.assert_allclose(mixed.table, plain.table[order], rtol=1e-12)
    shifted = coefficients("prdp", log_ratio, old, rewards + 10.0 * groups, groups, beta=0.5, clip_range=0.03)
    assert shifted.loss == pytest.approx(plain.loss, rel=1e-9)


def test_groups_of_unequal_size_are_refused() -> None:
    log_ratio = np.zeros((5, 1))
    with pytest.raises(ValueError, match="groups of 2 to 3 images, expected all of one size"):
        coefficients("prdp", log_ratio, log_ratio, np.arange(5.0), [0, 1, 0, 1, 0], beta=1.0, clip_range=None)


def test_tied_pairs_are_dropped_and_tied_groups_counted() -> None:
    log_ratio = np.array([[0.1], [0.2], [0.4], [0.3], [0.7], [0.8]])
    rewards = [1.0, 1.0, 2.0, 5.0, 5.0, 5.0]
    groups = [0, 0, 0, 1, 1, 1]
    result = coefficients("prdp", log_ratio, log_ratio, rewards, groups, beta=1.0, clip_range=None)
    # Of group 0 the pairs (2, 0) and (2, 1) remain: errors 0.3 - 1 and 0.2 - 1. Group 1 has no pair left.
    assert result.loss == pytest.approx((0.7**2 + 0.8**2) / 2)
    assert result.metrics["groups_tied"] == 1.0
    assert result.metrics["prediction_size"] == pytest.approx(math.sqrt((0.3**2 + 0.2**2) / 2))
    assert not result.table[3:].any()
    nothing = coefficients("prdp", log_ratio, log_ratio, np.ones(6), groups, beta=1.0, clip_range=1e-4)
    assert nothing.loss == 0.0
    assert not nothing.table.any()
    assert nothing.metrics["groups_tied"] == 2.0
    assert nothing.metrics["prediction_size"] == 0.0


def test_the_tilted_policy_of_a_markov_chain_has_zero_loss() -> None:
    """pi* = pi_ref exp(r / beta) / Z, by backward recursion over a chain of three steps and four states."""
    rng = np.random.default_rng(4)
    steps, states, beta = 3, 4, 0.4
    reference = rng.dirichlet(np.ones(states), size=(steps, states))
    reward = rng.normal(size=states)
    value = reward / beta
    optimal = np.empty_like(reference)
    for step in reversed(range(steps)):
        tilted = reference[step] * np.exp(value)[None, :]
        optimal[step] = tilted / tilted.sum(1, keepdims=True)
        value = np.log(tilted.sum(1))
    paths = [(0, *rng.integers(states, size=steps)) for _ in range(12)]
    log_ratio = np.array(
        [[math.log(optimal[t][p[t], p[t + 1]] / reference[t][p[t], p[t + 1]]) for t in range(steps)] for p in paths]
    )
    rewards, groups = reward[[p[-1] for p in paths]], np.zeros(12, int)
    # The listing averages over steps where eq. 9 sums, so its beta is steps times the trajectory's.
    result = coefficients("prdp", log_ratio, log_ratio, rewards, groups, beta=beta * steps, clip_range=1e-4)
    assert result.loss == pytest.approx(0.0, abs=1e-20)
    assert result.metrics["prediction_size"] == pytest.approx(1.0)
    off = coefficients("prdp", 0.9 * log_ratio, log_ratio, rewards, groups, beta=beta * steps, clip_range=None)
    assert off.loss > 1e-4


def test_step_weights_scale_evidence_and_gradient() -> None:
    log_ratio, old, rewards, groups = random_batch(5)
    weights = np.array([0.5, 1.5, 1.0, 1.0])
    result = coefficients(
        "prdp", log_ratio, old, rewards, groups, step_weights=weights, beta=0.5, clip_range=0.03
    )
    by_hand = coefficients("prdp", log_ratio * weights, old * weights, rewards, groups, beta=0.5, clip_range=0.03)
    assert result.loss == by_hand.loss
    np.testing.assert_allclose(result.table, by_hand.table * weights, rtol=1e-12)


def test_errors_name_what_is_wrong() -> None:
    log_ratio, old, rewards, groups = random_batch(6)
    with pytest.raises(ValueError, match=r"objective\.name=prpd: must be one of prdp, "):
        coefficients("prpd", log_ratio, old, rewards, groups, beta=1.0, clip_range=None)
    with pytest.raises(ValueError, match=r"rewards \(14,\)"):
        coefficients("prdp", log_ratio, old, rewards[1:], groups, beta=1.0, clip_range=None)


def test_the_gaussian_optimum_has_zero_loss() -> None:
    # pi_ref = N(0, 1) and r = a x, so pi* = N(a / beta, 1).
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    a, beta = 0.8, 0.5
    one = torch.ones((), dtype=torch.float64)
    optimal, reference = torch.distributions.Normal(a / beta * one, one), torch.distributions.Normal(0 * one, one)
    ratio = optimal.log_prob(x) - reference.log_prob(x)
    result = coefficients("prdp", ratio[:, None], ratio[:, None], a * x, np.zeros(9, int), beta=beta, clip_range=0.1)
    assert result.loss == pytest.approx(0.0, abs=1e-20)


@pytest.mark.parametrize("std", ["pooled", "batch", "group"])
def test_rewards_in_units_of_their_spread(std: str) -> None:
    log_ratio, old, rewards, groups = random_batch(6)
    knobs = {"beta": 0.7, "clip_range": None, "std": std}
    found = coefficients("prdp", log_ratio, old, rewards, groups, **knobs)
    other = coefficients("prdp", log_ratio, old, 40 * rewards + 3, groups, **knobs)
    np.testing.assert_allclose(other.table, found.table, rtol=1e-3)
    centred = rewards - np.array([rewards[groups == g].mean() for g in groups])
    spread = {
        "pooled": np.sqrt(np.square(centred).mean()),
        "batch": rewards.std(),
        "group": np.array([rewards[groups == g].std() for g in groups]),
    }[std]
    raw = coefficients("prdp", log_ratio, old, centred / (spread + 1e-4), groups, beta=0.7, clip_range=None)
    np.testing.assert_allclose(found.table, raw.table, rtol=1e-9)
