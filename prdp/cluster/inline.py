"""All work in this process: the same plain classes, one chunk after the other."""

from __future__ import annotations

import time
from typing import Any

from prdp.cluster.base import (
    OnChunk,
    RewardFactory,
    RewardLike,
    SamplerFactory,
    SamplerLike,
    acknowledged,
    check_request,
    check_rollout,
    identity_of_worker,
    place,
    sampled,
)
from prdp.types import PromptBatch, Rollout, Weights


class InlineWorkforce:
    """A `Workforce` of one sampler and one reward, which take turns: scoring never overlaps sampling. Needs no Ray.

    Args:
        sampler_factory: builds the sampler.
        reward_factory: builds the reward worker.
        prompts_per_chunk: whole prompt groups per unit of work, the same cut that actors would get.
    """

    def __init__(self, sampler_factory: SamplerFactory, reward_factory: RewardFactory, prompts_per_chunk: int) -> None:
        self._sampler: SamplerLike | None = sampler_factory()
        self._reward: RewardLike | None = reward_factory()
        self._prompts_per_chunk = prompts_per_chunk
        self._weights: Weights | None = None

    def publish(self, weights: Weights) -> None:
        """Bind the weights in the sampler.

        Raises:
            WeightsMismatchError: what the sampler bound is not what was published.
        """
        sampler, _ = self._workers()
        acknowledged(weights, {"the inline sampler": sampler.load_weights(weights)})
        self._weights = Weights(weights.version, {}, weights.checksum)

    def sample(
        self,
        prompts: PromptBatch,
        *,
        images_per_prompt: int,
        seed: int,
        trajectory: bool = True,
        on_chunk: OnChunk | None = None,
    ) -> Rollout:
        """Sample and score chunk by chunk, in order; see `Workforce.sample`."""
        sampler, reward = self._workers()
        check_request(prompts, images_per_prompt)
        parts = []
        for chunk in prompts.chunks(self._prompts_per_chunk):
            rollout = sampled(sampler, chunk, images_per_prompt, seed, trajectory)
            check_rollout(rollout, chunk, images_per_prompt, self._weights)
            start = time.perf_counter()
            rewards, sub_scores = reward.score(
                rollout.images, rollout.image_prompts, rollout.image_metadata, place(chunk)
            )
            scored = rollout.scored(rewards, sub_scores, time.perf_counter() - start)
            parts.append(scored)
            if on_chunk is not None:
                on_chunk(scored)
        return Rollout.concatenate(parts)

    @property
    def reward_identity(self) -> dict[str, Any]:
        """Name and version of the reward."""
        return identity_of_worker(self._workers()[1])

    def close(self) -> None:
        """Let go of the sampler and the reward."""
        self._sampler = self._reward = self._weights = None

    def _workers(self) -> tuple[SamplerLike, RewardLike]:
        if self._sampler is None or self._reward is None:
            raise RuntimeError("this workforce is closed")
        return self._sampler, self._reward
