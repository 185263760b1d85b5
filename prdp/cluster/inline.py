"""All work in this process: the same plain classes, one chunk after the other."""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from typing import Any

import numpy as np

from prdp.cluster.base import (
    OnChunk,
    RewardFactory,
    RewardLike,
    SamplerFactory,
    SamplerLike,
    Workforce,
    acknowledged,
    check_images,
    check_request,
    check_rollout,
    describe_chunk,
    identity_of_worker,
    sampled,
    waits_of_worker,
)
from prdp.cluster.rollout_builder import RolloutBuilder
from prdp.cluster.time_limits import Watchdog, limits_of
from prdp.config import ClusterConfig
from prdp.types import PromptBatch, Rollout, UInt8, Weights


class InlineWorkforce(Workforce):
    """A `Workforce` of one sampler and one reward, which take turns: scoring never overlaps sampling. Needs no Ray.

    A request is worked on when its result is asked for, under the weights that were published when it was made.

    Args:
        sampler_factory: builds the sampler.
        reward_factory: builds the reward worker.
        prompts_per_chunk: whole prompt groups per unit of work, the same cut that actors would get.
        config: the `cluster` section.
    """

    def __init__(
        self,
        sampler_factory: SamplerFactory,
        reward_factory: RewardFactory,
        prompts_per_chunk: int,
        config: ClusterConfig | None = None,
    ) -> None:
        self.plan = "cluster: one process samples, scores and learns in turns"
        self._sampler: SamplerLike | None = sampler_factory()
        self._reward: RewardLike | None = reward_factory()
        self._prompts_per_chunk = prompts_per_chunk
        self._weights: Weights | None = None
        self._bound: tuple[int, str] | None = None
        self._chunks = 0
        self._watchdog = Watchdog(limits_of(config or ClusterConfig()))

    def publish(self, weights: Weights) -> None:
        self._workers()
        self._weights = weights

    def submit(
        self, prompts: PromptBatch, *, images_per_prompt: int, seed: int, trajectory: bool = True, urgent: bool = False
    ) -> InlinePending:
        self._workers()
        check_request(prompts, images_per_prompt)
        return InlinePending(self, self._weights, prompts, images_per_prompt, seed, trajectory)

    def score(
        self, images: UInt8, prompts: PromptBatch, *, images_per_prompt: int, on_chunk: OnChunk | None = None
    ) -> Rollout:
        _, reward = self._workers()
        check_images(images, prompts, images_per_prompt)
        begun, chunks = time.perf_counter(), prompts.chunks(self._prompts_per_chunk)
        builder = RolloutBuilder.of_images(images, prompts, chunks, images_per_prompt)
        for index in range(len(chunks)):
            self._score(reward, builder, index, builder.chunk(index), on_chunk)
        return builder.build(time.perf_counter() - begun, 0.0)

    @property
    def reward_identity(self) -> dict[str, Any]:
        return identity_of_worker(self._workers()[1])

    def status(self) -> dict[str, Any]:
        here = {"node": platform.node(), "pid": os.getpid(), "state": "ready", "restarts": 0, "chunks": self._chunks}
        at, now = self._watchdog.work, time.time()
        scoring = at is not None and at.doing.startswith("scoring")
        return {
            "actors": [
                {"name": kind, "kind": kind, **here, **(at.status(now) if at is not None and scoring == scores else {})}
                for kind, scores in (("sampler", False), ("reward actor", True))
            ],
            "last_fault": None,
        }

    def close(self) -> None:
        self._sampler = self._reward = self._weights = None
        self._watchdog.close()

    def work(self, pending: InlinePending, on_chunk: OnChunk | None) -> Rollout:
        """Sample and score chunk by chunk, in order."""
        sampler, reward = self._workers()
        begun = time.perf_counter()
        bound = self._bind(sampler, pending.weights)
        binding, sampling = time.perf_counter() - begun, 0.0
        chunks = pending.prompts.chunks(self._prompts_per_chunk)
        builder = RolloutBuilder(pending.prompts, chunks, pending.images_per_prompt)
        for index, chunk in enumerate(chunks):
            images = len(chunk) * pending.images_per_prompt
            with self._watchdog.over("sample", f"sampling {describe_chunk(chunk)}", images):
                rollout = sampled(sampler, chunk, pending.images_per_prompt, pending.seed, pending.trajectory)
            sampling += rollout.seconds["sample"]
            check_rollout(rollout, chunk, pending.images_per_prompt, bound)
            rollout = builder.add_chunk(index, rollout if index else rollout.took("bind", binding))
            self._score(reward, builder, index, rollout, on_chunk)
        return builder.build(time.perf_counter() - begun, sampling)

    def _score(
        self, reward: RewardLike, builder: RolloutBuilder, index: int, rollout: Rollout, on_chunk: OnChunk | None
    ) -> None:
        """Score one chunk, and put its rewards where they belong."""
        where, start = describe_chunk(rollout.prompts), time.perf_counter()
        with self._watchdog.over("score", f"scoring {where}", len(rollout), waits_of_worker(reward)):
            images = np.asarray(rollout.images)
            rewards, sub_scores = reward.score(images, rollout.image_prompts, rollout.image_metadata, where)
        scored = builder.add_rewards(index, rollout.took("score", time.perf_counter() - start), rewards, sub_scores)
        self._chunks += 1
        if on_chunk is not None:
            on_chunk(scored)

    def _bind(self, sampler: SamplerLike, weights: Weights | None) -> tuple[int, str] | None:
        """Bind the weights unless the sampler holds them; what it then holds, None before anything was published."""
        if weights is not None and self._bound != (weights.version, weights.checksum):
            self._bound = None
            with self._watchdog.over("bind", "binding weights"):
                answer = sampler.load_weights(weights)
            acknowledged((weights.version, weights.checksum), "the inline sampler", answer)
            self._bound = answer
        return self._bound

    def _workers(self) -> tuple[SamplerLike, RewardLike]:
        if self._sampler is None or self._reward is None:
            raise RuntimeError("this workforce is closed")
        return self._sampler, self._reward


@dataclasses.dataclass(frozen=True)
class InlinePending:
    """A request and the weights it was made under."""

    workforce: InlineWorkforce
    weights: Weights | None
    prompts: PromptBatch
    images_per_prompt: int
    seed: int
    trajectory: bool

    def result(self, on_chunk: OnChunk | None = None) -> Rollout:
        """Do the work; see `Pending.result`."""
        return self.workforce.work(self, on_chunk)
