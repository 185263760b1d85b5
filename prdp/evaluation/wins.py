"""Where a model's images are better than their partners: the four observations of students and teachers, tested.

"Your Student is Better Than Expected", Starodubcev et al., CVPR 2024, arXiv:2312.10835: a student's image is the better
one for a good share of the prompts; that is so where the two differ most; they differ more where the teacher's image is
complex; and less where the prompt is short.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri
from scipy.stats import rankdata

from prdp.evaluation.diversity import paired_distance
from prdp.evaluation.results import NOTHING, Interval, Results
from prdp.tracking.statistics import win_rate_interval
from prdp.types import Float64, Int64

TIE = 1e-9
"""Scores that differ by less are equal."""


@dataclass(frozen=True)
class Wins:
    """Of one model beside the one that it is compared with, on one prompt set by one reward.

    Attributes:
        wins: share of the images that score above their partner's.
        losses: share of those that score below.
        far_over_near: share of wins among the half of the prompts whose images differ most, less that among the others.
        gain_far_over_near: the same of the score's difference, whose sign the paper does not tell.
        distance_by_complexity, distance_by_length: rank correlations over prompts of the distance, with the complexity
            of the partner's image, in bytes of its PNG file, and with the prompt's length, in words.
        gain_by_complexity: rank correlation of the score's difference with that complexity.
    """

    model: str
    prompts: str
    reward: str
    wins: Interval
    losses: Interval
    far_over_near: Interval
    gain_far_over_near: Interval
    distance_by_complexity: Interval
    distance_by_length: Interval
    gain_by_complexity: Interval


def rank_correlation(first: Float64, second: Float64, confidence: float) -> Interval:
    """Spearman's, with the interval of Bonett and Wright (2000), Psychometrika 65: z of Fisher with the variance
    (1 + r^2 / 2) / (n - 3).

    Args:
        first, second: float64 [n]; pairs with a NaN are left out.

    Returns:
        all NaN where a side is constant or fewer than 4 pairs are left.
    """
    known = np.isfinite(first) & np.isfinite(second)
    one, two = rankdata(first[known]), rankdata(second[known])
    if len(one) < 4 or one.std() == 0 or two.std() == 0:
        return NOTHING
    value = float(np.corrcoef(one, two)[0, 1])
    inside = min(max(value, -1 + 1e-12), 1 - 1e-12)
    half = float(ndtri(0.5 + confidence / 2)) * math.sqrt((1 + value**2 / 2) / (len(one) - 3))
    return value, math.tanh(math.atanh(inside) - half), math.tanh(math.atanh(inside) + half)


def halves(values: Float64, distance: Float64, confidence: float) -> Interval:
    """Mean of values [n] where the distance is above its median, less the mean of the others; Welch's interval."""
    known = np.isfinite(values) & np.isfinite(distance)
    values, distance = values[known], distance[known]
    far = distance > np.median(distance) if len(values) else np.zeros(0, bool)
    if min(far.sum(), (~far).sum()) < 2:
        return NOTHING
    parts = [values[far], values[~far]]
    difference = float(parts[0].mean() - parts[1].mean())
    half = float(ndtri(0.5 + confidence / 2)) * math.sqrt(sum(part.var(ddof=1) / len(part) for part in parts))
    return difference, difference - half, difference + half


def wins(results: Results) -> tuple[Wins, ...]:
    """For every model that shares its noise with the one compared with."""
    if results.against is None:
        return ()
    partner = next(model for model in results.models if model.name == results.against)
    found = []
    for model in results.models:
        if model.name == results.against or not model.shares_noise_with(partner):
            continue
        for prompt_set, batch in results.work.prompts.items():
            own, other = (results.images[name, prompt_set] for name in (model.name, partner.name))
            distance = by_prompt(paired_distance(own.features, other.features), own.prompt)
            complexity = by_prompt(_bytes(results, partner.name, prompt_set), own.prompt)
            length = np.array([float(len(text.split())) for text in batch.texts])
            for reward in results.rewards:
                scores = own.scores[reward], other.scores[reward]
                found.append(
                    _wins(results, (model.name, prompt_set, reward), scores, own.prompt, distance, complexity, length)
                )
    return tuple(found)


def by_prompt(values: Float64, groups: Int64) -> Float64:
    """Means float64 [prompts] of values [n] that are there; NaN where none is."""
    known = ~np.isnan(values)
    size = int(groups.max()) + 1
    totals = np.bincount(groups[known], values[known], minlength=size)
    with np.errstate(invalid="ignore"):
        return np.asarray(totals / np.bincount(groups[known], minlength=size), np.float64)


def _wins(
    results: Results,
    where: tuple[str, str, str],
    scores: tuple[Float64, Float64],
    groups: Int64,
    distance: Float64,
    complexity: Float64,
    length: Float64,
) -> Wins:
    confidence = results.work.config.confidence
    difference = scores[0] - scores[1]
    won = np.where(np.isnan(difference), np.nan, difference > TIE)
    lost = np.where(np.isnan(difference), np.nan, difference < -TIE)
    gain = by_prompt(difference, groups)
    return Wins(
        *where,
        wins=_share(won, groups, confidence),
        losses=_share(lost, groups, confidence),
        far_over_near=halves(by_prompt(won, groups), distance, confidence),
        gain_far_over_near=halves(gain, distance, confidence),
        distance_by_complexity=rank_correlation(distance, complexity, confidence),
        distance_by_length=rank_correlation(distance, length, confidence),
        gain_by_complexity=rank_correlation(gain, complexity, confidence),
    )


def _share(outcome: Float64, groups: Int64, confidence: float) -> Interval:
    """Wilson's interval of a share of images that come in groups: that of a win against nothing, without ties."""
    # 1 against 0.5 is a win and 0 against 0.5 a loss, whose rate is the share.
    return win_rate_interval(np.where(np.isnan(outcome), np.nan, 0.5), outcome, groups, confidence)


def _bytes(results: Results, model: str, prompt_set: str) -> Float64:
    """Size of each image's file, in the order of `Images`."""
    return np.array(
        [
            float((chunk.folder / name).stat().st_size)
            for seed in results.work.config.seeds
            for chunk in results.work.chunks[model, prompt_set, seed]
            for name in chunk.names()
        ]
    )
