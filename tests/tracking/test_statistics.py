"""Intervals against cases done by hand and against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import bootstrap

from prdp.tracking import statistics
from prdp.tracking.statistics import mean_interval, paired_difference_interval, win_rate_interval


def test_two_groups_by_hand() -> None:
    # Resamples of two groups: both 0 (1/4), both 1 (1/4), one of each (1/2): the 95% interval is everything, the 40%
    # interval (from the 30th to the 70th percentile) is the middle value alone.
    values, groups = [0.0, 0.0, 1.0, 1.0], ["a", "a", "b", "b"]
    assert mean_interval(values, groups) == (0.5, 0.0, 1.0)
    assert mean_interval(values, groups, confidence=0.4) == (0.5, 0.5, 0.5)


def test_groups_of_unequal_size_weigh_by_their_images() -> None:
    # Group a has one image of score 0, group b three of score 1: the mean over images is 3/4, and so it is in a
    # resample that has one of each.
    values, groups = [0.0, 1.0, 1.0, 1.0], [5, 9, 9, 9]
    assert mean_interval(values, groups, confidence=0.4) == (0.75, 0.75, 0.75)


def test_without_groups_it_agrees_with_scipy() -> None:
    values = np.random.default_rng(1).gamma(2.0, size=80)
    mean, low, high = mean_interval(values, resamples=20000)
    other = bootstrap((values,), np.mean, n_resamples=20000, method="percentile", rng=np.random.default_rng(2))
    width = other.confidence_interval.high - other.confidence_interval.low
    assert mean == pytest.approx(values.mean(), abs=1e-12)
    assert low == pytest.approx(other.confidence_interval.low, abs=0.03 * width)
    assert high == pytest.approx(other.confidence_interval.high, abs=0.03 * width)


def test_copies_of_an_image_add_no_certainty() -> None:
    values = np.random.default_rng(3).normal(size=50)
    once = mean_interval(values, resamples=4000)
    copies = mean_interval(np.repeat(values, 8), np.repeat(np.arange(50), 8), resamples=4000)
    alone = mean_interval(np.repeat(values, 8), resamples=4000)
    assert copies == pytest.approx(once, abs=1e-12)
    assert alone[2] - alone[1] < 0.5 * (once[2] - once[1])


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(4)
    hits = 0
    for trial in range(200):
        values = (rng.normal(size=40)[:, None] + 0.2 * rng.normal(size=(40, 4))).reshape(-1)
        _, low, high = mean_interval(values, np.repeat(np.arange(40), 4), resamples=400, seed=trial)
        hits += low <= 0.0 <= high
    assert 0.88 <= hits / 200 <= 0.99


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


def test_results_depend_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(5).normal(size=30)
    whole = mean_interval(values)
    assert mean_interval(values) == whole and mean_interval(values, seed=1) != whole
    monkeypatch.setattr(statistics, "_BLOCK", 100)
    assert mean_interval(values) == pytest.approx(whole, abs=1e-12)


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
        (lambda: mean_interval([0.0], resamples=0), "resamples is 0"),
        (lambda: paired_difference_interval([0.0], [0.0, 1.0]), "expected pairs"),
    ],
)
def test_what_does_not_fit_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_win_rate_counts_ties_half() -> None:
    rate, low, high = win_rate_interval([0, 0, 1, 2, math.nan], [1, 0, 0, 3, 1], ["a", "a", "b", "b", "c"])
    assert rate == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert low <= rate <= high
    assert win_rate_interval([1, 2], [1, 2]) == pytest.approx((0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="expected pairs"):
        win_rate_interval([1], [1, 2])
