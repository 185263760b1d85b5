"""What a cascade would be at any rate: routed by score, by chance, and by somebody who knows the judge.

A cascade of rate 1 has drawn every image once more. What it would be at another rate is known then, image by image:
the second image of those that are chosen, the student's of the others. Neither depends on the rate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from prdp.calibration import fit
from prdp.collaboration.cascade_files import Cascade, read_cascade
from prdp.config import SamplerConfig
from prdp.evaluation.cascades import parts_of, threshold_of
from prdp.evaluation.models import EvaluatedModel, model_digest
from prdp.evaluation.results import ALL, NOTHING, Interval, Results
from prdp.evaluation.samplers import sampler_of
from prdp.tracking.statistics import mean_interval, paired_difference_interval
from prdp.types import Bool, Float64, Int64

RATES = (0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Alternatives:
    """The two images that a cascade has of each prompt and noise; n of them.

    Attributes:
        first, second: float64 [n], what the judge says of the student's image and of the one in its place.
        first_passes, second_passes: float64 [n], what the student's image took, and what both took.
        groups: int64 [n], number of the prompt.
        estimates: float64 [n], what the cascade's estimator says of the student's image; None where that is not known.
    """

    first: Float64
    second: Float64
    first_passes: Float64
    second_passes: Float64
    groups: Int64
    estimates: Float64 | None


@dataclass(frozen=True)
class Routed:
    """A cascade at one rate, judged by one reward or sub-score.

    Attributes:
        cascade, student: names of the models.
        rate: share of the images that were to be drawn once more; `share` that was, which ties make smaller.
        passes: of the network for an image.
        score: routed by the estimator; NaN where its scores are not known.
        over_chance: paired difference to what the same share by chance is expected to be.
        by_chance: that expectation.
        oracle: routed by the judge itself: no router can do better.
    """

    cascade: str
    student: str
    prompts: str
    reward: str
    part: str
    rate: float
    share: float
    passes: float
    score: Interval
    over_chance: Interval
    by_chance: float
    oracle: float


def routed(pair: Alternatives, rate: float, confidence: float) -> tuple[float, float, Interval, Interval, float, float]:
    """(share, passes, score, over_chance, by_chance, oracle); see `Routed`."""
    known = ~(np.isnan(pair.first) | np.isnan(pair.second))
    count = len(pair.first)
    chosen: Bool | None = None
    if pair.estimates is not None:
        chosen = np.asarray(fit(pair.estimates, rate, "below").chooses(pair.estimates), np.bool_)
    share = float(np.floor(rate * count) / count if chosen is None else chosen.mean())
    chance = (1.0 - share) * pair.first + share * pair.second
    gains = np.sort(np.where(known, pair.second - pair.first, -np.inf))[::-1][: round(share * count)]
    total = max(int(known.sum()), 1)
    oracle = float((pair.first[known].sum() + gains[np.isfinite(gains)].sum()) / total)
    by_chance = float(chance[known].sum() / total)
    if chosen is None:
        passes = float(((1.0 - share) * pair.first_passes + share * pair.second_passes).mean())
        return share, passes, NOTHING, NOTHING, by_chance, oracle
    scores = np.where(chosen, pair.second, pair.first)
    passes = float(np.where(chosen, pair.second_passes, pair.first_passes).mean())
    score = mean_interval(scores, pair.groups, confidence)
    over = paired_difference_interval(chance, scores, pair.groups, confidence)
    return share, passes, score, over, by_chance, oracle


def routings(results: Results) -> tuple[Routed, ...]:
    """Every cascade of rate 1 whose student is evaluated, too, at `RATES`; the estimator's scores are those of a reward
    of the evaluation that is the very estimator.
    """
    found = []
    confidence = results.work.config.confidence
    for model, student, cascade in _whole_cascades(results):
        estimator = _estimator(results, cascade)
        for prompt_set in results.work.prompts:
            first, second = (results.images[name, prompt_set] for name in (student, model))
            estimates = None if estimator is None else first.scores[estimator]
            if estimates is not None and not np.isfinite(estimates).all():
                estimates = None
            for reward in results.rewards:
                subs = first.sub_scores[reward].keys() & second.sub_scores[reward].keys()
                parts = {ALL: (first.scores[reward], second.scores[reward])}
                parts |= {f"sub-score: {sub}": (first.sub_scores[reward][sub], second.sub_scores[reward][sub])
                          for sub in sorted(subs)}  # fmt: skip
                for part, (own, other) in parts.items():
                    pair = Alternatives(
                        own, other, first.network_passes, second.network_passes, first.prompt, estimates
                    )
                    found += [
                        Routed(model, student, prompt_set, reward, part, rate, *routed(pair, rate, confidence))
                        for rate in RATES
                    ]
    return tuple(found)


def _whole_cascades(results: Results) -> Iterator[tuple[str, str, Cascade]]:
    """(cascade, student, what it is) of those that have drawn every image twice."""
    for model in results.models:
        if model.kind != "cascade" or model.path is None:
            continue
        cascade = read_cascade(model.path)
        if cascade.strategy.name == "skip" or threshold_of(model.path, cascade).rate != 1.0:
            continue
        digest, sampler = model_digest(parts_of(cascade)[0]), _of_images(cascade.student.sampler)
        for other in results.models:
            if other.kind != "cascade" and _drawn_so(results, other) == sampler and model_digest(other) == digest:
                yield model.name, other.name, cascade
                break


def _drawn_so(results: Results, model: EvaluatedModel) -> SamplerConfig:
    return _of_images(sampler_of(results.work.config, model))


def _of_images(sampler: SamplerConfig) -> SamplerConfig:
    """Without what changes the work and not the images."""
    plain = SamplerConfig()
    return dataclasses.replace(
        sampler,
        microbatch=plain.microbatch,
        prompts_per_chunk=plain.prompts_per_chunk,
        shared_start_noise=False,
        start_churn=0.0,
    )


def _estimator(results: Results, cascade: Cascade) -> str | None:
    """The reward of the evaluation that is a cascade's estimator."""
    sections = {**results.work.config.rewards, **results.work.config.watch}
    return next((name for name, section in sections.items() if dict(section) == dict(cascade.reward)), None)
