"""Confidence intervals for scores of images that come in groups: several images share a prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_BLOCK = 4_000_000
"""Entries of one block of bootstrap weights; bounds the memory, and does not change results."""


def mean_interval(
    values: npt.ArrayLike,
    groups: npt.ArrayLike | Sequence[object] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Mean over images with a bootstrap percentile interval that resamples whole groups.

    Images of one prompt are alike, so treating them as independent would give intervals that are too narrow; here a
    prompt's images are drawn together or not at all.

    Args:
        values: float [n]; NaN entries are left out.
        groups: label of each value's group, [n]; None: every value is its own group.
        confidence: share of the interval, in (0, 1).
        resamples: bootstrap resamples.
        seed: of the resampling.

    Returns:
        (mean, low, high). All NaN without a value; low and high NaN with fewer than two groups, which say nothing
        about the spread between groups.

    Raises:
        ValueError: shapes that differ, or confidence or resamples out of range.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"values have shape {array.shape}, expected [n]")
    labels = np.arange(len(array)) if groups is None else np.asarray(groups)
    if labels.shape != array.shape:
        raise ValueError(f"groups have shape {labels.shape}, expected one label for each of the {len(array)} values")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, expected a number between 0 and 1")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}, expected at least 1")

    present = ~np.isnan(array)
    array, labels = array[present], labels[present]
    if not len(array):
        return np.nan, np.nan, np.nan
    mean = float(array.mean())
    _, index = np.unique(labels, return_inverse=True)
    index = index.reshape(-1)
    sizes = np.bincount(index).astype(np.float64)
    count = len(sizes)
    if count < 2:
        return mean, np.nan, np.nan
    # Centring first keeps the sums small: a constant score then gets an interval without width.
    sums = np.bincount(index, weights=array - mean)

    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    block = max(1, _BLOCK // count)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        draws = rng.integers(0, count, size=(rows, count))
        offsets = np.arange(rows)[:, None] * count
        weights = np.bincount((draws + offsets).reshape(-1), minlength=rows * count).reshape(rows, count)
        means[start : start + rows] = (weights @ sums) / (weights @ sizes)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail]) + mean
    return mean, float(low), float(high)


def paired_difference_interval(
    before: npt.ArrayLike,
    after: npt.ArrayLike,
    groups: npt.ArrayLike | Sequence[object] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Mean of `after - before` over the same images (same prompt, same noise) with its interval.

    Arguments and result as in `mean_interval`; pairs with a NaN on either side are left out.

    Raises:
        ValueError: also when `before` and `after` differ in shape.
    """
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"before has shape {first.shape} and after {second.shape}, expected pairs")
    return mean_interval(second - first, groups, confidence, resamples, seed)


def win_rate_interval(
    before: npt.ArrayLike,
    after: npt.ArrayLike,
    groups: npt.ArrayLike | Sequence[object] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Share of the images with `after` above `before`, a tie counting half, with its interval.

    Arguments and result as in `paired_difference_interval`.
    """
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"before has shape {first.shape} and after {second.shape}, expected pairs")
    wins = np.where(np.isnan(first) | np.isnan(second), np.nan, 0.5 * (1.0 + np.sign(second - first)))
    return mean_interval(wins, groups, confidence, resamples, seed)
