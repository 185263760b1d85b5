"""Intervals against cases done by hand and against scipy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, binomtest, ttest_1samp, ttest_ind

from prdp.tracking.statistics import (
    mean_interval,
    mean_of_means_interval,
    paired_difference_interval,
    wilson_interval,
    win_rate_interval,
)


def test_two_groups_by_hand() -> None:
    # Means 0 and 1: standard error 1/2, and Student's quantile with one degree of freedom is tan(0.475 pi).
    values, groups = [0.0, 0.0, 1.0, 1.0], ["a", "a", "b", "b"]
    half = math.tan(0.475 * math.pi) / 2
    assert mean_interval(values, groups) == pytest.approx((0.5, 0.5 - half, 0.5 + half), rel=1e-9)
    assert mean_interval(values, groups, confidence=0.5) == pytest.approx((0.5, 0.0, 1.0), abs=1e-9)


@pytest.mark.parametrize("images", [1, 3])
def test_groups_of_one_size_have_the_t_interval_of_their_means(images: int) -> None:
    values = np.random.default_rng(1).gamma(2.0, size=(20, images))
    for confidence in (0.8, 0.95):
        other = ttest_1samp(values.mean(1), 0).confidence_interval(confidence)
        ours = mean_interval(values.ravel(), np.repeat(np.arange(20), images), confidence)
        assert ours == pytest.approx((values.mean(), other.low, other.high), rel=1e-9)


def test_groups_of_unequal_size_weigh_by_their_images() -> None:
    # One image of score 0, three of score 1: mean 3/4; the groups' sums of deviations are -3/4 and 3/4, so that the
    # standard error is sqrt(2 * 2 * 9/16) / 4 = 3/8.
    mean, low, high = mean_interval([0.0, 1.0, 1.0, 1.0], [5, 9, 9, 9])
    half = math.tan(0.475 * math.pi) * 3 / 8
    assert (mean, low, high) == pytest.approx((0.75, 0.75 - half, 0.75 + half), rel=1e-9)


def test_copies_of_an_image_add_no_certainty() -> None:
    values = np.random.default_rng(3).normal(size=50)
    once = mean_interval(values)
    copies = mean_interval(np.repeat(values, 8), np.repeat(np.arange(50), 8))
    alone = mean_interval(np.repeat(values, 8))
    assert copies == pytest.approx(once, abs=1e-12)
    assert alone[2] - alone[1] < 0.5 * (once[2] - once[1])


TRIALS = 600


@pytest.mark.parametrize("prompts", [2, 4, 8, 64])
@pytest.mark.parametrize(
    ("scores", "truth", "least"),
    [
        (lambda rng, shape: rng.normal(size=shape), 0.0, 0.93),
        (lambda rng, shape: rng.beta(4.0, 1.0, size=shape), 0.8, 0.88),
        (lambda rng, shape: rng.exponential(size=shape), 1.0, 0.86),
    ],
    ids=["normal", "skewed_to_the_left", "skewed_to_the_right"],
)
def test_the_interval_covers_the_truth_about_as_often_as_it_says(
    scores: Callable[[np.random.Generator, Any], np.ndarray], truth: float, least: float, prompts: int
) -> None:
    """Four images a prompt; a quantile bootstrap covers normal means in .48, .81 and .89 at 2, 4, 8 prompts."""
    rng = np.random.default_rng(prompts)
    groups = np.repeat(np.arange(prompts), 4)
    hits = 0
    for _ in range(TRIALS):
        values = scores(rng, (prompts, 1)) + 0.1 * rng.normal(size=(prompts, 4))
        _, low, high = mean_interval(values.ravel(), groups)
        hits += low <= truth <= high
    assert least <= hits / TRIALS <= 0.975


@pytest.mark.parametrize("prompts", [2, 4, 8, 64])
@pytest.mark.parametrize("alike", [True, False], ids=["images_alike", "images_independent"])
@pytest.mark.parametrize("rate", [0.6, 0.9])
def test_win_rates_are_covered(rate: float, alike: bool, prompts: int) -> None:
    rng = np.random.default_rng(prompts)
    groups = np.repeat(np.arange(prompts), 4)
    hits = 0
    for _ in range(TRIALS):
        wins = np.broadcast_to(rng.random((prompts, 1 if alike else 4)) < rate, (prompts, 4))
        _, low, high = win_rate_interval(np.full(wins.size, 0.5), wins.ravel(), groups)
        hits += low <= rate <= high
    # A rate of few prompts takes few values, so that coverage jumps about what is claimed.
    assert hits / TRIALS >= 0.88


@pytest.mark.parametrize(("wins", "count"), [(0, 2), (2, 2), (3, 4), (4, 4), (20, 64)])
def test_win_rates_have_wilson_intervals(wins: int, count: int) -> None:
    other = binomtest(wins, count).proportion_ci(0.95, method="wilson")
    assert wilson_interval(wins / count, count) == pytest.approx((other.low, other.high), abs=1e-12)
    after = np.arange(count) < wins
    assert win_rate_interval(np.full(count, 0.5), after)[1:] == pytest.approx((other.low, other.high), abs=1e-12)
    copies = win_rate_interval(np.full(4 * count, 0.5), np.repeat(after, 4), np.repeat(np.arange(count), 4))
    assert copies[1:] == pytest.approx((other.low, other.high), abs=1e-12)


def test_missing_values_are_left_out_with_groups_that_have_no_other() -> None:
    values = [0.2, math.nan, 0.6, 0.8, math.nan, math.nan]
    groups = [0, 0, 1, 1, 2, 2]
    assert mean_interval(values, groups) == mean_interval([0.2, 0.6, 0.8], [0, 1, 1])


def test_too_little_to_say() -> None:
    assert all(map(math.isnan, mean_interval([])))
    assert all(map(math.isnan, mean_interval([math.nan, math.nan])))
    mean, low, high = mean_interval([0.25, 0.75], [1, 1])
    assert mean == 0.5 and math.isnan(low) and math.isnan(high)


def test_a_constant_score_has_an_interval_of_no_width() -> None:
    assert mean_interval([0.1] * 30) == pytest.approx((0.1, 0.1, 0.1), abs=1e-12)


@pytest.mark.filterwarnings("error")
def test_infinite_and_huge_scores_have_a_mean_and_no_interval() -> None:
    inf, nan = math.inf, math.nan
    for values, mean in (
        ([1.0, inf, 2.0], inf), ([-inf, 1.0], -inf), ([inf, inf], inf), ([inf, -inf], nan), ([1e308] * 3, inf),
        ([0.0, 1e200], 5e199),
    ):  # fmt: skip
        assert mean_interval(values) == pytest.approx((mean, nan, nan), nan_ok=True), values
    assert paired_difference_interval([0.0, 1.0], [inf, 2.0]) == pytest.approx((inf, nan, nan), nan_ok=True)
    assert paired_difference_interval([inf, 1.0, 1.0], [inf, 2.0, 4.0]) == mean_interval([1.0, 3.0])
    assert win_rate_interval([inf, 0.0, -1e308], [inf, inf, 1e308])[0] == pytest.approx(2.5 / 3)


@pytest.mark.parametrize(("count", "least", "most", "lowest"), [(4, 0.87, 1.0, 0.83), (8, 0.91, 0.99, 0.83),
                                                                (64, 0.93, 0.97, 0.83)])  # fmt: skip
def test_wilson_covers_on_the_average_and_jumps_about_it(count: int, least: float, most: float, lowest: float) -> None:
    """Exact coverage, as docs/evaluation.md tells it."""
    low, high = np.array([wilson_interval(wins / count, count) for wins in range(count + 1)]).T
    rates = np.linspace(0.001, 0.999, 4001)
    chances = binom.pmf(np.arange(count + 1), count, rates[:, None])
    coverage = (chances * ((low <= rates[:, None]) & (rates[:, None] <= high))).sum(1)
    assert coverage.mean() == pytest.approx(0.95, abs=0.006)
    middle = coverage[(rates >= 0.1) & (rates <= 0.9)]
    assert least <= middle.min() < 0.94 and middle.max() <= most and lowest - 0.005 <= coverage.min() < 0.85


def test_pairs_take_away_what_prompts_have_in_common() -> None:
    rng = np.random.default_rng(6)
    groups = np.repeat(np.arange(60), 2)
    before = np.repeat(rng.normal(0, 1.0, size=60), 2)
    after = before + 0.1 + rng.normal(0, 0.05, size=120)
    mean, low, high = paired_difference_interval(before, after, groups)
    assert mean == pytest.approx((after - before).mean()) and 0.05 < low < 0.1 < high + 0.02
    unpaired = mean_interval(after, groups)
    assert high - low < 0.1 * (unpaired[2] - unpaired[1])


def test_pairs_with_one_side_missing_are_left_out() -> None:
    result = paired_difference_interval([0.0, math.nan, 0.5, 0.2], [1.0, 1.0, math.nan, 0.4], [0, 1, 2, 3])
    assert result[0] == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([[0.0]]), r"\(1, 1\), expected \[n\]"),
        (lambda: mean_interval([0.0, 1.0], [0]), "one label for each of the 2 values"),
        (lambda: mean_interval([0.0], confidence=1.0), "confidence is 1.0"),
        (lambda: paired_difference_interval([0.0], [0.0, 1.0]), "expected pairs"),
    ],
)
def test_what_does_not_fit_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_win_rate_counts_ties_half() -> None:
    rate, low, high = win_rate_interval([0, 0, 1, 2, math.nan], [1, 0, 0, 3, 1], ["a", "a", "b", "b", "c"])
    assert rate == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert 0 < low < rate < high < 1
    tied = win_rate_interval([1, 2], [1, 2])
    assert tied[0] == 0.5 and tied[1:] == pytest.approx(wilson_interval(0.5, 2))
    rate, low, high = win_rate_interval([1, 2], [2, 3], [7, 7])
    assert rate == 1 and math.isnan(low) and math.isnan(high)
    with pytest.raises(ValueError, match="expected pairs"):
        win_rate_interval([1], [1, 2])


def test_the_mean_of_two_means_has_the_interval_of_welch() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.normal(1, 2, 7), rng.normal(4, 0.5, 12)
    values, strata = np.concatenate([first, second]), np.repeat(["a", "b"], [7, 12])
    mean, low, high = mean_of_means_interval(values, np.arange(19), strata, 0.9)
    # Welch's interval is that of a difference: with the sign of one turned it is that of the sum, twice the mean.
    welch = ttest_ind(first, -second, equal_var=False).confidence_interval(0.9)
    assert mean == pytest.approx((first.mean() + second.mean()) / 2)
    assert (low, high) == pytest.approx((welch.low / 2, welch.high / 2))


def test_the_mean_of_means_takes_groups_and_leaves_out_what_is_missing() -> None:
    values, groups = np.array([1.0, 3, 5, 9, np.nan]), [0, 0, 1, 1, 2]
    assert mean_of_means_interval(values, groups, ["a"] * 5) == pytest.approx(mean_interval(values, groups))
    mean, low, high = mean_of_means_interval(values, groups, ["a", "a", "b", "b", "c"])
    assert mean == 4.5 and math.isnan(low) and math.isnan(high)  # one group in each says nothing about their spread
    assert mean_of_means_interval([2, 2, 4, 4], [0, 1, 2, 3], [0, 0, 1, 1]) == (3, 3, 3)
    assert all(map(math.isnan, mean_of_means_interval([np.nan], [0], [0])))
