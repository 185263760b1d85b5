"""The reward of the shapes world: how well each picture shows what its prompt says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from prdp.rewards.pixels import check_batch
from prdp.worlds.shapes.grammar import parse
from prdp.worlds.shapes.judge import SUB_SCORES, judge
from prdp.worlds.shapes.scene import Scene


@lru_cache(maxsize=65536)
def _scene(prompt: str) -> Scene:
    try:
        return parse(prompt)
    except ValueError as error:
        raise ValueError(f"prompt {prompt!r} is outside the grammar of the shapes world: {error}") from error


class ShapesJudge:
    """A black-box reward that looks only at the pixels and the prompt; see `prdp.worlds.shapes.judge.judge`."""

    name = "shapes_judge"
    version = "1"
    sub_score_names: tuple[str, ...] = SUB_SCORES

    @staticmethod
    def check_prompt(prompt: str, metadata: Mapping[str, object]) -> None:
        """Raise ValueError for a prompt outside the grammar."""
        _scene(prompt)

    @staticmethod
    def check_size(height: int, width: int) -> None:
        """Raise ValueError for pictures that are not square: they would be judged with their shapes distorted."""
        if height != width:
            raise ValueError(f"shapes_judge scores square pictures, not {height} x {width} (height x width)")

    def score(
        self,
        images: NDArray[np.uint8],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, object]],
    ) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
        """Scores a batch of pictures.

        images: uint8 [B, H, H, 3]; prompts and metadata: one per image (the metadata isn't looked at).
        Returns the rewards, float64 [B] in [0, 1], and each sub-score, float64 [B] in [0, 1]; `relation` is NaN for
        prompts of one object.
        Raises ValueError for another dtype or shape, for lengths that differ, and for a prompt outside the grammar.
        """
        check_batch(images, prompts, metadata)
        self.check_size(*images.shape[1:3])
        scenes = [_scene(prompt) for prompt in prompts]
        results = [judge(image, scene) for image, scene in zip(images, scenes, strict=True)]
        rewards = np.array([result["score"] for result in results], dtype=np.float64)
        subs = {name: np.array([r[name] for r in results], dtype=np.float64) for name in self.sub_score_names}
        return rewards, subs
