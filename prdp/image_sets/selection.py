"""What taking the best image of every prompt gains, by each reward and sub-score of a set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from prdp.evaluation.store import read_scores
from prdp.image_sets.reading import ImageSet
from prdp.types import Float64


@dataclass(frozen=True)
class Selection:
    """One aspect of a set.

    Attributes:
        aspect: a reward, or reward.sub_score.
        prompts: that it applies to: those of which an image has a finite score.
        mean: of all finite scores of these prompts.
        best: the largest score of each of these prompts, [prompts].
    """

    aspect: str
    prompts: int
    mean: float
    best: Float64


def selections(one: ImageSet) -> list[Selection]:
    """Of every aspect that the set was scored by, in the order of its rewards."""
    found: dict[str, list[Float64]] = {}
    for chunk in dict.fromkeys(entry.chunk for entry in one.entries):
        for reward in one.manifest.rewards:
            stored = read_scores(one.folder / chunk, reward)
            if stored is not None:
                scores = stored[1]
                found.setdefault(reward, []).append(scores.rewards)
                for name, values in scores.sub_scores.items():
                    found.setdefault(f"{reward}.{name}", []).append(values)
    size = one.manifest.images_per_prompt
    return [_selection(aspect, np.concatenate(parts).reshape(-1, size)) for aspect, parts in found.items()]


def _selection(aspect: str, scores: Float64) -> Selection:
    told = np.where(np.isfinite(scores), scores, np.nan)
    told = told[np.isfinite(told).any(1)]
    mean = float(np.nanmean(told)) if len(told) else float("nan")
    return Selection(aspect, len(told), mean, np.nanmax(told, 1) if len(told) else np.empty(0))


def selection_lines(one: ImageSet) -> Iterator[str]:
    """A table of a set with several images a prompt: its quartiles are what a threshold is chosen from."""
    told = selections(one) if one.manifest.images_per_prompt > 1 else []
    if not told:
        return
    width = max(len(selection.aspect) for selection in told)
    best = f"best of {one.manifest.images_per_prompt}"
    yield f"{'':<{width}}  prompts  all images  {best:>10}  its quartiles"
    for selection in told:
        start = f"{selection.aspect:<{width}}  {selection.prompts:>7,}"
        if not selection.prompts:
            yield start
            continue
        quartiles = "  ".join(f"{value:.4g}" for value in np.quantile(selection.best, (0.25, 0.5, 0.75)))
        yield f"{start}  {selection.mean:>10.4g}  {selection.best.mean():>10.4g}  {quartiles}"
