"""Confidence intervals for scores of images that come in groups: several images share a prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri, stdtrit

from prdp.types import Float64

_Groups = npt.ArrayLike | Sequence[object] | None


def mean_interval(
    values: npt.ArrayLike, groups: _Groups = None, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Mean over images with Student's t interval, whose independent units are the groups.

    Images of one prompt are alike, so treating them as independent would give intervals that are too narrow. Of groups
    of one size it is the t interval of the groups' means. In general the mean is the ratio of the groups' sums and
    sizes, with the linearised variance of cluster samples (Cochran, Sampling Techniques, eq. 9A.9) and a degree of
    freedom less than groups.

    It is exact for normal means, also with two groups. Of skewed scores it covers somewhat less than it says while
    groups are few, as every interval that knows no bounds of the scores. Where the means of all groups are equal it is
    a point, which says that no spread was seen, and nothing about how often such a point is the truth.

    Args:
        values: float [n]; NaN entries are left out.
        groups: label of each value's group, [n]; None: every value is its own group.
        confidence: share of the interval, in (0, 1).

    Returns:
        (mean, low, high). All NaN without a value; low and high NaN with fewer than two groups, which say nothing
        about the spread between groups, and where a value is infinite or the spread is beyond float64. The mean of
        infinities of both signs is NaN.

    Raises:
        ValueError: shapes that differ, or confidence out of range.
    """
    array, index = _present(values, groups, confidence)
    if not len(array):
        return math.nan, math.nan, math.nan
    count = int(index.max()) + 1
    with np.errstate(over="ignore", invalid="ignore"):
        mean = float(array.mean())
        half = math.nan if count < 2 else _student(confidence, count) * _standard_error(array - mean, index)
    if not math.isfinite(half):
        return mean, math.nan, math.nan
    return mean, mean - half, mean + half


def mean_of_means_interval(
    values: npt.ArrayLike, groups: _Groups, strata: npt.ArrayLike, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Mean of the strata's means, whatever their sizes, with an interval; the groups of different strata are others.

    The variances of the means add up, and the degrees of freedom are Welch's and Satterthwaite's.

    Args:
        values, groups, confidence: as for `mean_interval`.
        strata: label of each value's stratum, [n].

    Returns:
        (mean, low, high). All NaN without a value; low and high NaN where a stratum has fewer than two groups.
    """
    array, labels = np.asarray(values, dtype=np.float64), np.asarray(strata)
    names = np.arange(len(array)) if groups is None else np.asarray(groups)
    means, variances, freedoms = [], [], []
    with np.errstate(over="ignore", invalid="ignore"):
        for stratum in np.unique(labels):
            found, index = _present(array[labels == stratum], names[labels == stratum], confidence)
            if not len(found):
                continue
            count = int(index.max()) + 1
            means.append(float(found.mean()))
            variances.append(_standard_error(found - means[-1], index) ** 2 if count > 1 else math.nan)
            freedoms.append(count - 1)
        if not means:
            return math.nan, math.nan, math.nan
        mean, total = float(np.mean(means)), float(np.sum(variances))
        half = 0.0
        if total:
            freedom = total**2 / float(np.sum(np.square(variances) / np.maximum(freedoms, 1)))
            half = float(stdtrit(freedom, 0.5 + confidence / 2)) * math.sqrt(total) / len(means)
    if not math.isfinite(half):
        return mean, math.nan, math.nan
    return mean, mean - half, mean + half


def half_width_of_groups(std: float, group_std: float, groups: int, confidence: float = 0.95) -> float:
    """Half of the t interval of a mean over groups of one size, from two spreads that a log keeps.

    The variance of all values is that of the groups' means plus the mean variance within groups. A mean of standard
    deviations is at most the root of the latter, so that this interval is never narrower than the exact one.

    Args:
        std: standard deviation of all values, as `numpy.std` has it.
        group_std: mean of the groups' standard deviations, likewise.
        groups: how many there are.

    Returns:
        NaN for fewer than two groups, or spreads that are not finite.
    """
    between = std * std - group_std * group_std
    if groups < 2 or not math.isfinite(between):
        return math.nan
    return _student(confidence, groups) * math.sqrt(max(0.0, between) / (groups - 1))


def paired_difference_interval(
    before: npt.ArrayLike, after: npt.ArrayLike, groups: _Groups = None, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Mean of `after - before` over the same images (same prompt, same noise) with its interval.

    Arguments and result as in `mean_interval`; pairs with a NaN on either side, or with equal infinities, are left out.

    Raises:
        ValueError: also when `before` and `after` differ in shape.
    """
    first, second = _pairs(before, after)
    with np.errstate(over="ignore", invalid="ignore"):
        difference = second - first
    return mean_interval(difference, groups, confidence)


def win_rate_interval(
    before: npt.ArrayLike, after: npt.ArrayLike, groups: _Groups = None, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Share of the images with `after` above `before`, a tie counting half, with its Wilson interval.

    The interval is that of as many independent images as would tell as much (Franco et al. 2019, Journal of Survey
    Statistics and Methodology 7): all of them where those of a prompt differ as those of different prompts do, and the
    number of prompts where they are alike, or where prompts are too few to tell.

    Arguments and result as in `paired_difference_interval`.
    """
    first, second = _pairs(before, after)
    missing = np.isnan(first) | np.isnan(second)
    outcome = np.where(missing, np.nan, 0.5 * (1.0 + (second > first) - (second < first)))
    wins, index = _present(outcome, groups, confidence)
    if not len(wins):
        return math.nan, math.nan, math.nan
    rate, count = float(wins.mean()), int(index.max()) + 1
    if count < 2:
        return rate, math.nan, math.nan
    low, high = wilson_interval(rate, _effective_size(wins, index, confidence), confidence)
    return rate, low, high


def wilson_interval(rate: float, count: float, confidence: float = 0.95) -> tuple[float, float]:
    """(low, high) of a proportion by Wilson's score interval.

    It covers what it says on the average over proportions. Of a single one the coverage jumps with `count`, as that of
    every interval of counts that is not wider than it says (Brown, Cai and DasGupta 2001, Statistical Science 16): of 8
    observations and 95% between .92 and .99 for proportions in [.1, .9], and down to .84 nearer to 0 or 1.

    Args:
        rate: the observed proportion, in [0, 1].
        count: of independent observations, above 0; need not be whole.
        confidence: share of the interval, in (0, 1).
    """
    z = _normal(confidence)
    shrink = 1.0 + z**2 / count
    centre = (rate + z**2 / (2 * count)) / shrink
    half = z / shrink * math.sqrt(rate * (1 - rate) / count + z**2 / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def _effective_size(wins: Float64, index: npt.NDArray[np.intp], confidence: float) -> float:
    """Independent images that would tell as much as these, at least as many as groups of one size would be."""
    rate, sizes = float(wins.mean()), np.bincount(index)
    least = float(sizes.sum() ** 2 / np.square(sizes).sum())
    variance = _standard_error(wins - rate, index) ** 2
    if variance == 0 or rate in (0.0, 1.0):
        return least
    # The variance itself is an estimate of few groups, which the quantiles' ratio allows for (Korn and Graubard 1998).
    caution = (_normal(confidence) / _student(confidence, len(sizes))) ** 2
    return min(max(rate * (1 - rate) / variance * caution, least), float(len(wins)))


def _present(values: npt.ArrayLike, groups: _Groups, confidence: float) -> tuple[Float64, npt.NDArray[np.intp]]:
    """The values that are not NaN, and the number of each one's group."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"values have shape {array.shape}, expected [n]")
    labels = np.arange(len(array)) if groups is None else np.asarray(groups)
    if labels.shape != array.shape:
        raise ValueError(f"groups have shape {labels.shape}, expected one label for each of the {len(array)} values")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, expected a number between 0 and 1")
    present = ~np.isnan(array)
    _, index = np.unique(labels[present], return_inverse=True)
    return array[present], index.reshape(-1)


def _pairs(before: npt.ArrayLike, after: npt.ArrayLike) -> tuple[Float64, Float64]:
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"before has shape {first.shape} and after {second.shape}, expected pairs")
    return first, second


def _standard_error(centred: Float64, index: npt.NDArray[np.intp]) -> float:
    """Of the mean, from the deviations of all values from it and the number of each one's group."""
    sums = np.bincount(index, weights=centred)
    count = len(sums)
    return math.sqrt(count / (count - 1) * float(np.square(sums).sum())) / len(centred)


def _student(confidence: float, count: int) -> float:
    return float(stdtrit(count - 1, 0.5 + confidence / 2))


def _normal(confidence: float) -> float:
    return float(ndtri(0.5 + confidence / 2))
