"""The numbers of an evaluation: means, paired differences, win rates, diversity and drift, with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from prdp.evaluation.diversity import mean_pairwise_distance, paired_distance
from prdp.evaluation.models import EvaluatedModel
from prdp.evaluation.store import Chunk
from prdp.evaluation.work import EvaluationWork
from prdp.tracking.statistics import (
    mean_interval,
    mean_of_means_interval,
    paired_difference_interval,
    win_rate_interval,
)
from prdp.types import Float32, Float64, Int64

if TYPE_CHECKING:
    from prdp.evaluation.routing import Routed
    from prdp.evaluation.wins import Wins

Interval = tuple[float, float, float]
NOTHING: Interval = (np.nan, np.nan, np.nan)
ALL = "all"
CATEGORY_MEAN = "mean of categories"


@dataclass(frozen=True)
class Images:
    """All images of one model on one prompt set, seed by seed, prompts in order; n of them.

    Attributes:
        seed, prompt, image: int64 [n]; position of the prompt in the set, number of the image in its group.
        scores: reward -> float64 [n].
        sub_scores: reward -> sub-score -> float64 [n], NaN where one does not apply.
        features: float32 [n, D].
        logratio_ref: float64 [n], NaN where it was not measured.
        network_passes: float64 [n], passes of the network that drew each image, NaN where that is not known.
        sample_seconds: spent on making the images; score_seconds: reward -> seconds.
    """

    seed: Int64
    prompt: Int64
    image: Int64
    scores: Mapping[str, Float64]
    sub_scores: Mapping[str, Mapping[str, Float64]]
    features: Float32
    logratio_ref: Float64
    network_passes: Float64
    sample_seconds: float
    score_seconds: Mapping[str, float]

    def __len__(self) -> int:
        return len(self.prompt)


@dataclass(frozen=True)
class Cell:
    """One model on one prompt set by one reward.

    Attributes:
        part: 'all', 'mean of categories', 'category: <name>' or 'sub-score: <name>'.
        score: mean over images with its interval over prompts.
        difference: mean of the paired differences from the model compared with; NaN for that model itself.
        win_rate: share of the images that score above their partner's, ties half.
        images: that have a score.
    """

    model: str
    prompts: str
    reward: str
    part: str
    score: Interval
    difference: Interval
    win_rate: Interval
    images: int

    @property
    def sign(self) -> int:
        """+1 or -1 when the difference's interval leaves out zero, else 0."""
        _, low, high = self.difference
        return 1 if low > 0 else -1 if high < 0 else 0


@dataclass(frozen=True)
class Spread:
    """Diversity and drift of one model on one prompt set.

    Attributes:
        diversity: mean pairwise distance of a prompt's images.
        relative: diversity as a part of that of the model compared with.
        drift: mean distance of each image from its partner of the same noise; NaN where latents of another shape start
            from other noise.
        logratio_ref: mean log-ratio to the base over latent dims and steps, an estimate of the KL on that scale.
        collapsed: the alarm.
    """

    model: str
    prompts: str
    diversity: Interval
    relative: float
    drift: Interval
    logratio_ref: Interval
    collapsed: bool


@dataclass(frozen=True)
class Results:
    """Everything that tables and report show.

    Attributes:
        work: what was evaluated.
        identities: reward -> its name and version.
        features: name of the feature space.
        images: (model, prompt set) -> images.
        cells, spreads: in the order of the tables.
        notes: sentences about how it was done.
        routed: cascades at other rates.
        wins: where models are better than the one compared with.
    """

    work: EvaluationWork
    identities: Mapping[str, Mapping[str, Any]]
    features: str
    images: Mapping[tuple[str, str], Images]
    cells: tuple[Cell, ...]
    spreads: tuple[Spread, ...]
    notes: tuple[str, ...]
    routed: tuple[Routed, ...] = ()
    wins: tuple[Wins, ...] = ()

    @property
    def models(self) -> tuple[EvaluatedModel, ...]:
        """In the order of the tables."""
        return self.work.models

    @property
    def rewards(self) -> tuple[str, ...]:
        """Optimised ones first, then watched ones."""
        return (*self.work.config.rewards, *self.work.config.watch)

    @property
    def against(self) -> str | None:
        """The model that the others are compared with."""
        return self.work.config.against

    def watched(self, reward: str) -> bool:
        """Whether a reward is only watched."""
        return reward in self.work.config.watch

    def trained_on(self, model: EvaluatedModel, reward: str) -> bool:
        """Whether a model's run optimised this very reward."""
        section = {**self.work.config.rewards, **self.work.config.watch}[reward]
        return model.run is not None and dict(model.run.config.reward) == dict(section)

    def cell(self, model: str, prompts: str, reward: str, part: str = ALL) -> Cell | None:
        """One cell; None where there is none."""
        found = (model, prompts, reward, part)
        return next((c for c in self.cells if (c.model, c.prompts, c.reward, c.part) == found), None)

    def spread(self, model: str, prompts: str) -> Spread:
        """Diversity and drift of a model on a prompt set."""
        return next(one for one in self.spreads if (one.model, one.prompts) == (model, prompts))

    def parts(self, prompts: str, kind: str) -> list[str]:
        """The categories ('category: ') or sub-scores ('sub-score: ') of a prompt set."""
        return list(dict.fromkeys(c.part for c in self.cells if c.prompts == prompts and c.part.startswith(kind)))


def gather(work: EvaluationWork, identities: Mapping[str, Mapping[str, Any]], features: str, space: str) -> Results:
    """Read everything back from disk and compute the numbers.

    Args:
        work: whose images, scores and features are all on disk.
        identities: reward -> identity, in the order of the tables.
        features: name of the feature space; `space` its name with version, as its files are called.
    """
    sections = {**work.config.rewards, **work.config.watch}
    keys = {name: {"identity": identities[name], "section": dict(section)} for name, section in sections.items()}
    images = {
        (model.name, prompt_set): _images(
            [(seed, work.chunks[model.name, prompt_set, seed]) for seed in work.config.seeds], keys, space
        )
        for model in work.models
        for prompt_set in work.prompts
    }
    cells: list[Cell] = []
    spreads: list[Spread] = []
    models = {model.name: model for model in work.models}
    for prompt_set in work.prompts:
        base = images.get((work.config.against, prompt_set)) if work.config.against is not None else None
        for model in work.models:
            found = images[model.name, prompt_set]
            other = base if model.name != work.config.against else None
            noise = other is not None and model.shares_noise_with(models[str(work.config.against)])
            spreads.append(_spread(work, model.name, prompt_set, found, other, noise))
            for reward in sections:
                cells += _cells(work, model.name, prompt_set, reward, found, other)
    return Results(work, dict(identities), features, images, tuple(cells), tuple(spreads), ())


def prompt_changes(results: Results, model: str, prompt_set: str, reward: str) -> Float64:
    """Float64 [prompts]: mean change of each prompt's score against the model compared with."""
    assert results.against is not None
    found, base = results.images[model, prompt_set], results.images[results.against, prompt_set]
    change = found.scores[reward] - base.scores[reward]
    sizes = np.bincount(found.prompt)
    return np.bincount(found.prompt, weights=change) / sizes


def _images(parts: Sequence[tuple[int, Sequence[Chunk]]], keys: Mapping[str, Mapping[str, Any]], space: str) -> Images:
    seeds: list[Int64] = []
    prompts, numbers, features, ratios, passes = [], [], [], [], []
    scores: dict[str, list[Float64]] = {name: [] for name in keys}
    subs: dict[str, list[Mapping[str, Float64]]] = {name: [] for name in keys}
    sample_seconds, score_seconds = 0.0, dict.fromkeys(keys, 0.0)
    for seed, chunks in parts:
        for chunk in chunks:
            size = chunk.images_per_prompt
            seeds.append(np.full(len(chunk), seed))
            prompts.append(chunk.prompts.offset + np.repeat(np.arange(len(chunk.prompts)), size))
            numbers.append(np.tile(np.arange(size), len(chunk.prompts)))
            found = chunk.features(space)
            assert found is not None, chunk.folder
            features.append(found)
            seconds, ratio = chunk.sampling()
            sample_seconds += seconds
            ratios.append(ratio)
            passes.append(chunk.network_passes())
            for name, key in keys.items():
                scored = chunk.scores(name, key)
                assert scored is not None, (chunk.folder, name)
                scores[name].append(scored.rewards)
                subs[name].append(scored.sub_scores)
                score_seconds[name] += scored.seconds
    return Images(
        seed=np.concatenate(seeds),
        prompt=np.concatenate(prompts),
        image=np.concatenate(numbers),
        scores={name: np.concatenate(parts_) for name, parts_ in scores.items()},
        sub_scores={name: _joined(found, [len(s) for s in scores[name]]) for name, found in subs.items()},
        features=np.concatenate(features),
        logratio_ref=np.concatenate(ratios),
        network_passes=np.concatenate(passes),
        sample_seconds=sample_seconds,
        score_seconds=score_seconds,
    )


def _joined(parts: Sequence[Mapping[str, Float64]], sizes: Sequence[int]) -> dict[str, Float64]:
    names = dict.fromkeys(name for part in parts for name in part)
    return {
        name: np.concatenate([part.get(name, np.full(size, np.nan)) for part, size in zip(parts, sizes, strict=True)])
        for name in names
    }


def _cells(
    work: EvaluationWork, model: str, prompt_set: str, reward: str, found: Images, base: Images | None
) -> list[Cell]:
    confidence = work.config.confidence

    def cell(part: str, values: Float64, partner: Float64 | None, chosen: Any = slice(None)) -> Cell:
        groups, values = found.prompt[chosen], values[chosen]
        difference, wins = NOTHING, NOTHING
        if partner is not None:
            difference = paired_difference_interval(partner[chosen], values, groups, confidence)
            wins = win_rate_interval(partner[chosen], values, groups, confidence)
        score = mean_interval(values, groups, confidence)
        return Cell(model, prompt_set, reward, part, score, difference, wins, int(np.sum(~np.isnan(values))))

    partner = base.scores[reward] if base is not None else None
    cells = [cell(ALL, found.scores[reward], partner)]
    metadata = work.prompts[prompt_set].metadata
    categories = np.array([str(meta.get("category", "")) for meta in metadata])[found.prompt]
    names = sorted(set(categories.tolist()) - {""})
    if work.config.category_mean and names:
        cells.append(_category_mean(model, prompt_set, reward, found, partner, categories, confidence))
    for name in names:
        cells.append(cell(f"category: {name}", found.scores[reward], partner, categories == name))
    for name, values in found.sub_scores[reward].items():
        other = base.sub_scores[reward].get(name) if base is not None else None
        cells.append(cell(f"sub-score: {name}", values, other))
    return cells


def _category_mean(
    model: str,
    prompt_set: str,
    reward: str,
    found: Images,
    partner: Float64 | None,
    categories: np.ndarray,
    confidence: float,
) -> Cell:
    """The mean of the categories' means, as benchmarks publish it; images of no category are left out."""
    values = np.where(categories == "", np.nan, found.scores[reward])
    score = mean_of_means_interval(values, found.prompt, categories, confidence)
    difference = NOTHING
    if partner is not None:
        difference = mean_of_means_interval(values - partner, found.prompt, categories, confidence)
    count = int(np.sum(~np.isnan(values)))
    return Cell(model, prompt_set, reward, CATEGORY_MEAN, score, difference, NOTHING, count)


def _spread(
    work: EvaluationWork, model: str, prompt_set: str, found: Images, base: Images | None, same_noise: bool
) -> Spread:
    confidence = work.config.confidence
    values, labels = mean_pairwise_distance(found.features, found.prompt)
    diversity = mean_interval(values, labels, confidence)
    relative, drift = np.nan, NOTHING
    if base is not None:
        own, _ = mean_pairwise_distance(base.features, base.prompt)
        reference = float(np.mean(own)) if len(own) else np.nan
        relative = diversity[0] / reference if reference > 0 else np.nan
    if base is not None and same_noise:
        drift = mean_interval(paired_distance(found.features, base.features), found.prompt, confidence)
    ratio = mean_interval(found.logratio_ref, found.prompt, confidence)
    collapsed = bool(relative < work.config.collapse_below)
    return Spread(model, prompt_set, diversity, float(relative), drift, ratio, collapsed)
