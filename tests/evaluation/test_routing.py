"""Cascades at every rate, and where wins lie, against all subsets counted out and against scipy."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import spearmanr

from prdp.evaluation.routing import Alternatives, routed
from prdp.evaluation.wins import by_prompt, halves, rank_correlation


def pair(estimates: np.ndarray | None) -> Alternatives:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 8))
    return Alternatives(first, second, np.full(8, 4.0), np.full(8, 12.0), np.arange(8), estimates)


def test_every_rate_beside_all_ways_to_choose_as_many() -> None:
    estimates = np.array([3.0, 1.0, 2.0, 9.0, 8.0, 7.0, 6.0, 5.0])
    two = pair(estimates)
    share, passes, score, over, chance, oracle = routed(two, 0.4, 0.95)
    ways = [np.where(np.isin(np.arange(8), rows), two.second, two.first).mean() for rows in combinations(range(8), 3)]
    assert share == 3 / 8 and passes == 4 + 3
    assert chance == pytest.approx(np.mean(ways)) and oracle == pytest.approx(max(ways))
    lowest = np.where(np.isin(np.arange(8), [0, 1, 2]), two.second, two.first).mean()
    assert score[0] == pytest.approx(lowest) and over[0] == pytest.approx(lowest - np.mean(ways))
    assert over[1] < over[0] < over[2]
    unknown = routed(pair(None), 0.4, 0.95)
    assert unknown[:2] == (3 / 8, 7) and np.isnan(unknown[2]).all() and unknown[4:] == (chance, oracle)
    tied = routed(pair(np.ones(8)), 0.4, 0.95)
    assert tied[0] == 0 and tied[1] == 4 and tied[4] == tied[5] == pytest.approx(two.first.mean())


def test_sub_scores_that_do_not_apply_are_left_out() -> None:
    two = pair(np.arange(8.0))
    two.first[3:] = two.second[3:] = np.nan
    share, _, score, _, chance, oracle = routed(two, 0.25, 0.95)
    assert share == 0.25 and score[0] == pytest.approx((two.second[0] + two.second[1] + two.first[2]) / 3)
    gains = sorted(two.second[:3] - two.first[:3])[1:]
    assert oracle == pytest.approx(two.first[:3].mean() + sum(gains) / 3)
    assert chance == pytest.approx(two.first[:3].mean() + 0.25 * (two.second - two.first)[:3].mean())


def test_rank_correlations_and_halves() -> None:
    rng = np.random.default_rng(1)
    one = rng.integers(0, 5, 40).astype(float)
    two = one + rng.normal(size=40)
    two[3] = np.nan
    known = np.isfinite(two)
    value, low, high = rank_correlation(one, two, 0.95)
    assert value == pytest.approx(spearmanr(one[known], two[known]).statistic)
    assert -1 < low < value < high < 1
    assert np.isnan(rank_correlation(np.ones(40), two, 0.95)).all()
    assert rank_correlation(one, one, 0.95)[0] == pytest.approx(1.0)
    difference, low, high = halves(np.array([0.0, 0, 1, 0, 1, 1]), np.arange(6.0), 0.95)
    assert difference == pytest.approx(1 / 3) and low < difference < high
    assert np.isnan(halves(np.array([0.0, 1.0]), np.arange(2.0), 0.95)).all()
    groups = np.array([0, 0, 1, 2])
    np.testing.assert_array_equal(by_prompt(np.array([1.0, 3.0, np.nan, 5.0]), groups), [2.0, np.nan, 5.0])
