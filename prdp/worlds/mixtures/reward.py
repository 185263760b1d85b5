"""The reward of the world of mixtures: a quadratic of the point that a picture carries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prdp.rewards.pixels import check_batch
from prdp.types import Float64, UInt8
from prdp.worlds.mixtures.coordinates import decode_points
from prdp.worlds.mixtures.grammar import parse_all
from prdp.worlds.mixtures.world import reference_mixtures, rewards_of


class QuadraticOfPoint:
    """Scores each point by the quadratic that its prompt names; the policy sees nothing but the number.

    Args:
        kl_weight: of the objective E[r] - kl_weight KL, in reward per nat. With it, two more sub-scores say what the
            prompt's mixture tilted by exp(r / kl_weight) scores: the closed-form optimum. None leaves them out.
        prompt_offset: see `prdp.worlds.mixtures.world.rewards_of`.

    Sub-scores are expectations, the same for every image of a prompt: `reference`, of r under the reference's mixture;
    `optimum`, under the tilted one.
    """

    name = "quadratic_of_point"
    version = "1"

    def __init__(self, kl_weight: float | None = None, prompt_offset: float = 0.0) -> None:
        if kl_weight is not None and not kl_weight > 0:
            raise ValueError(f"kl_weight is {kl_weight}, expected a number above 0, or null")
        self._kl_weight = kl_weight
        self._prompt_offset = prompt_offset

    @staticmethod
    def check_size(height: int, width: int) -> None:
        """Raise ValueError for pictures that carry no point."""
        if (height, width) != (1, 2):
            raise ValueError(
                f"quadratic_of_point scores points, as model=gaussian_mixtures draws them, not pictures of {height} x "
                f"{width} (height x width)"
            )

    def score(
        self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> tuple[Float64, dict[str, Float64]]:
        """Rewards float64 [B] and sub-scores, float64 [B] each, of pictures uint8 [B, 1, 2, 3].

        Raises:
            ValueError: pictures that carry no point, or prompts of another world.
        """
        check_batch(images, prompts, metadata)
        points = decode_points(images)[:, None]
        attributes = parse_all(prompts)
        rewards, mixtures = rewards_of(attributes, self._prompt_offset), reference_mixtures(attributes)
        parts = {"reference": mixtures.expectation(rewards)}
        if self._kl_weight is not None:
            parts["optimum"] = mixtures.tilted(rewards, self._kl_weight)[0].expectation(rewards)
        return rewards(points)[:, 0], parts
