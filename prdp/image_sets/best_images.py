"""The images of sets that are best by an aspect, one of each prompt, and batches of them to learn from."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from prdp.evaluation.store import read_scores
from prdp.image_sets.manifest import Entry
from prdp.image_sets.reading import ImageSet
from prdp.support.errors import StartError
from prdp.support.suggest import did_you_mean
from prdp.types import Float32, Float64


@dataclass(frozen=True)
class Chosen:
    """An image of a set.

    Attributes:
        of: the set.
        entry: its prompt.
        number: which of the prompt's images.
    """

    of: ImageSet
    entry: Entry
    number: int

    def latents(self) -> Float32:
        """Float32 [C, h, w]; raises as `ImageSet.latents`."""
        latents: Float32 = self.of.latents(self.entry, self.number + 1)[-1]
        return latents


def all_images(sets: Sequence[ImageSet]) -> list[Chosen]:
    """Every image of the sets."""
    return [
        Chosen(one, entry, number) for one in sets for entry in one.entries for number in range(len(entry.files))
    ]


def best_images(sets: Sequence[ImageSet], aspect: str) -> list[Chosen]:
    """Of every prompt the image that an aspect scores best, the first of equals; prompts that it does not apply to,
    whose scores are not finite, are left out.

    Args:
        aspect: a reward that scored the sets, by its name there, or reward.sub_score.

    Raises:
        StartError: a set was not scored by it; names what it was scored by.
    """
    found = [
        Chosen(one, entry, int(np.nanargmax(group)))
        for one in sets
        for entry, group in _groups(one, aspect)
        if np.isfinite(group).any()
    ]
    if not found:
        raise StartError(f"aspects: {aspect} applies to no prompt of the sets: none of its scores is finite")
    return found


def best_scores(one: ImageSet, aspect: str, count: int, skill: str | None = None) -> Float64:
    """The best score of the first `count` images of every prompt, perhaps of one skill alone; float64 [prompts].

    Prompts that the aspect does not apply to are left out. Raises as `best_images`.
    """
    groups = [group[:count] for entry, group in _groups(one, aspect) if skill is None or entry.skill == skill]
    return np.array([np.nanmax(group) for group in groups if np.isfinite(group).any()], np.float64)


def shuffled(chosen: Sequence[Chosen], size: int, seed: int) -> Iterator[list[Chosen]]:
    """Batches without end: every image once in each pass, in another order; a batch may reach into the next pass."""
    waiting: list[Chosen] = []
    for number in itertools.count():
        order = np.random.default_rng((seed, number)).permutation(len(chosen))
        waiting += [chosen[index] for index in order]
        while len(waiting) >= size:
            yield waiting[:size]
            waiting = waiting[size:]


def _groups(one: ImageSet, aspect: str) -> Iterator[tuple[Entry, Float64]]:
    """Every prompt with the scores of its images."""
    chunk, scores, size = None, np.empty(0), one.manifest.images_per_prompt
    for entry in one.entries:
        if entry.chunk != chunk:
            chunk, scores = entry.chunk, _scores(one, entry, aspect)
        yield entry, scores[entry.row * size : (entry.row + 1) * size]


def _scores(one: ImageSet, entry: Entry, aspect: str) -> Float64:
    """Of all images of the chunk that an entry is in."""
    reward, _, sub_score = aspect.partition(".")
    there = list(one.manifest.rewards)
    if reward not in there:
        scored = f"by {', '.join(there)}" if there else "by nothing"
        raise StartError(f"aspects: {aspect}: {one.folder} was scored {scored}{did_you_mean(reward, there)}")
    found = read_scores(one.folder / entry.chunk, reward)
    if found is None:
        raise StartError(f"aspects: {one.folder / entry.chunk} has no scores.{reward}.json; make the set whole again")
    scores = found[1]
    if sub_score and sub_score not in scores.sub_scores:
        names = list(scores.sub_scores)
        raise StartError(
            f"aspects: {aspect}: {reward} has the sub-scores {', '.join(names) or 'none'}"
            f"{did_you_mean(sub_score, names)}"
        )
    return scores.sub_scores[sub_score] if sub_score else scores.rewards
