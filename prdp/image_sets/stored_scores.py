"""Scores that were kept with the images, in place of asking a reward again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prdp.evaluation.store import digest_of, digests_of, read_scores
from prdp.image_sets.manifest import Manifest
from prdp.image_sets.reading import ImageSet
from prdp.rewards.base import FREE_ARGUMENTS, Reward, identity_of
from prdp.support.errors import StartError
from prdp.support.targets import TARGET
from prdp.tracking.strict_json import strict_json
from prdp.types import Float64, UInt8

_Found = tuple[float, dict[str, float]]


class StoredReward:
    """A reward that looks into sets before it scores.

    The same picture, prompt and metadata have the score that a set keeps, if it is of a reward of the same name,
    version and arguments; what no set has is scored. Everything else is the reward's own.

    Args:
        reward: that scores; a section of a configuration, built already.
        kept: (folder of a set, name of scores there by the same reward with the same arguments), any number of them.

    Raises:
        StartError: a set is not whole.
    """

    def __init__(self, reward: Reward, kept: Sequence[tuple[str, str]]) -> None:
        self._reward = reward
        self._known: dict[tuple[str, str], _Found] = {}
        for folder, name in kept:
            one = ImageSet.open(Path(folder))
            if one.manifest.rewards[name]["identity"] == strict_json(identity_of(reward)):
                self._known |= _scores_in(one, name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._reward, name)

    def identity(self) -> dict[str, Any]:
        """The reward's."""
        return identity_of(self._reward)

    def score(
        self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> tuple[Float64, dict[str, Float64]] | Any:
        """Rewards [B] of uint8 images [B, H, W, 3], with sub-scores [B]: all stored, or all scored."""
        keys = [
            (digest, digest_of([prompt, dict(one)]))
            for digest, prompt, one in zip(digests_of(images), prompts, metadata, strict=True)
        ]
        found = [self._known[key] for key in keys if key in self._known]
        if len(found) < len(keys):
            return self._reward.score(images, prompts, metadata)
        parts = {name: np.array([subs[name] for _, subs in found]) for name in found[0][1]}
        return np.array([score for score, _ in found]), parts


def with_stored_scores(section: Any, sets: Sequence[ImageSet]) -> Any:
    """A section of a reward, or what stands in one, in which every part that a set has scores of looks there first."""
    if isinstance(section, list):
        return [with_stored_scores(one, sets) for one in section]
    if not isinstance(section, Mapping):
        return section
    kept = [(str(one.folder.resolve()), name) for one in sets for name in names_of(one.manifest, section)]
    if kept:
        return {TARGET: f"{__name__}.{StoredReward.__name__}", "reward": dict(section), "kept": kept}
    return {key: with_stored_scores(value, sets) for key, value in section.items()}


def names_of(manifest: Manifest, section: Mapping[str, Any]) -> list[str]:
    """The names under which a set keeps scores of a reward, by its target and arguments; versions are not looked at."""
    wanted = _binding(section)
    return [name for name, reward in manifest.rewards.items() if _binding(reward["section"]) == wanted]


def names_within(manifest: Manifest, section: Any) -> list[str]:
    """Those of a reward, or of its parts where the whole is not kept: what `with_stored_scores` looks for."""
    if isinstance(section, list):
        return [name for one in section for name in names_within(manifest, one)]
    if not isinstance(section, Mapping):
        return []
    return names_of(manifest, section) or names_within(manifest, list(section.values()))


def _binding(section: Any) -> Any:
    """A section without the arguments that say where and how fast is scored."""
    if not isinstance(section, Mapping):
        return section
    return {key: _binding(value) for key, value in section.items() if key not in FREE_ARGUMENTS}


def _scores_in(one: ImageSet, name: str) -> dict[tuple[str, str], _Found]:
    """(digest of the pixels, digest of prompt and metadata) -> score and sub-scores of a reward."""
    known: dict[tuple[str, str], _Found] = {}
    size, chunk, scores = one.manifest.images_per_prompt, None, None
    for entry in one.entries:
        if entry.chunk != chunk:
            chunk, scores = entry.chunk, read_scores(one.folder / entry.chunk, name)
        if scores is None:
            raise StartError(
                f"rollouts.path={one.folder}: {one.folder / entry.chunk} has no scores.{name}.json, though the set was "
                "scored by it; prdp generate with the same settings makes it again"
            )
        if len(scores[1].rewards) < (entry.row + 1) * size:
            raise StartError(
                f"rollouts.path={one.folder}: {one.folder / entry.chunk}/scores.{name}.json holds "
                f"{len(scores[1].rewards)} scores, fewer than images; prdp generate makes it again once it is removed"
            )
        about = digest_of([entry.prompt, dict(entry.metadata)])
        for number, digest in enumerate(entry.images):
            at = entry.row * size + number
            subs = {part: float(values[at]) for part, values in scores[1].sub_scores.items()}
            known[digest, about] = float(scores[1].rewards[at]), subs
    return known
