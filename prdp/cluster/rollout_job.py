"""A request to the actors: what of it is still to be done, and its chunks on their way to who waits for them."""

from __future__ import annotations

import queue
import time
from collections import deque
from typing import Any

from prdp.cluster.base import Identity, OnChunk
from prdp.cluster.chunk_references import Request
from prdp.cluster.rollout_builder import RolloutBuilder
from prdp.types import PromptBatch, Rollout, UInt8


class RolloutJob:
    """A `Pending` that the dispatcher works on.

    Args:
        prompts: of the request.
        chunks: its cut, the units of work.
        weights: the published ones, as their transport wants them, held while they are needed; None before any are.
        published: their version and checksum, which every rollout has to be made by.
        images_per_prompt, seed, trajectory: as for `Workforce.submit`.
        images: uint8 [n, H, W, 3] that are only to be scored, so that there is nothing `todo` for samplers.
        scores: whether images are to be scored once they are sampled.

    Attributes:
        todo: chunks that nobody has, by index.
        deaths: actors that died on each chunk.
        failed: nothing of it is wanted any more.
        builder: puts the rollout together.
        request: what its chunks follow from.
    """

    def __init__(
        self,
        prompts: PromptBatch,
        chunks: list[PromptBatch],
        weights: Any,
        published: Identity | None,
        images_per_prompt: int,
        seed: int,
        trajectory: bool,
        images: UInt8 | None = None,
        scores: bool = True,
    ) -> None:
        self.chunks, self.weights, self.published = chunks, weights, published
        self.images_per_prompt, self.seed, self.trajectory = images_per_prompt, seed, trajectory
        self.scores, self.request = scores, Request(
            prompts, weights, published, images_per_prompt, seed, trajectory
        )
        self.todo = deque(range(len(chunks)) if images is None else ())
        self.deaths = [0] * len(chunks)
        self.failed = False
        if images is None:
            self.builder = RolloutBuilder(prompts, chunks, images_per_prompt)
        else:
            self.builder = RolloutBuilder.of_images(images, prompts, chunks, images_per_prompt)
        self._outcomes: queue.SimpleQueue[Rollout | BaseException] = queue.SimpleQueue()
        self._begun: float | None = None if images is None else time.perf_counter()
        self._sampled = self._ended = self._begun or 0.0

    def take(self) -> int:
        """The next chunk to be worked on."""
        if self._begun is None:
            self._begun = time.perf_counter()
        return self.todo.popleft()

    def sampled(self) -> None:
        """A chunk is sampled, and in its place."""
        self._sampled = time.perf_counter()

    def finish(self, scored: Rollout) -> None:
        """A chunk is scored, and in its place."""
        self._ended = time.perf_counter()
        self._outcomes.put(scored)

    def fail(self, error: BaseException) -> None:
        """Nothing will come any more."""
        self.failed = True
        self.weights = None
        self._outcomes.put(error)

    def result(self, on_chunk: OnChunk | None = None) -> Rollout:
        """Wait until every chunk is sampled and scored; see `Pending.result`."""
        for _ in self.chunks:
            outcome = self._outcomes.get()
            if isinstance(outcome, BaseException):
                raise outcome
            if on_chunk is not None:
                on_chunk(outcome)
        self.weights = None
        begun = self._begun or self._ended
        return self.builder.build(self._ended - begun, self._sampled - begun)
