"""The plain classes as Ray actors."""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
from ray import cloudpickle

from prdp.cluster.actor_process import errors_of, hold_torch_to, import_from
from prdp.cluster.base import RewardLike, SamplerLike, describe_chunk, identity_of_worker, sampled, waits_of_worker
from prdp.cluster.chunk_products import Arrays, Summary, split
from prdp.cluster.direct_weights import Manifest, Receiver, Rendezvous
from prdp.cluster.warning_collector import WarningCollector
from prdp.types import Float64, PromptBatch, UInt8, Weights


@dataclasses.dataclass(frozen=True)
class Built:
    """What an actor answers when it is built: its place, what it is, and the warnings on the way.

    `waits` are the seconds that its reward may wait for others in one call.
    """

    pid: int
    node: str
    identity: dict[str, Any] = dataclasses.field(default_factory=dict)
    messages: tuple[str, ...] = ()
    waits: float = 0.0


class SamplerActor:
    """A sampler in its own process; built by `build`, so that what building raises can be told apart from a death."""

    def __init__(self, name: str, threads: int) -> None:
        self._name, self._threads = name, threads
        self._sampler: SamplerLike | None = None
        self._receiver: Receiver | None = None

    def build(self, factory: bytes, paths: Sequence[str]) -> Built:
        """Build the sampler from its pickled factory, which may import from the folders `paths` too."""
        import_from(paths)
        with errors_of(self._name), WarningCollector() as messages:
            self._sampler = cloudpickle.loads(factory)()
            hold_torch_to(self._threads)
        return Built(os.getpid(), platform.node(), messages=messages.texts)

    def load_weights(self, weights: Weights) -> tuple[int, str, float]:
        """Bind the weights; answers version and checksum as bound, and the seconds it took."""
        assert self._sampler is not None
        start = time.perf_counter()
        with errors_of(self._name):
            return *self._sampler.load_weights(weights), time.perf_counter() - start

    def receive_weights(self, rendezvous: Rendezvous, manifest: Manifest) -> tuple[int, str, float]:
        """Take weights that the learner sends, and bind them; answers as `load_weights` does.

        Raises:
            TransferError: they did not arrive.
        """
        start = time.perf_counter()
        if self._receiver is None:
            self._receiver = Receiver(ray.util.get_node_ip_address())
        with errors_of(self._name):
            weights = self._receiver.receive(rendezvous, manifest)
        version, checksum, _ = self.load_weights(weights)
        return version, checksum, time.perf_counter() - start

    def begin(self) -> None:
        """Answered when there is a process, and what was asked for next has its turn: whoever dies after that may have
        died of it.
        """

    def sample(
        self, chunk: PromptBatch, images_per_prompt: int, seed: int, trajectory: bool, begun: None
    ) -> tuple[Summary, np.ndarray, Arrays, Arrays]:
        """See `prdp.cluster.chunk_products.split`: four objects, of which the driver takes the first.

        `begun` is the answer to `begin`: asked for by reference, it is with the driver before any work begins.
        """
        assert self._sampler is not None
        with errors_of(f"{self._name}, {describe_chunk(chunk)}"):
            rollout = sampled(self._sampler, chunk, images_per_prompt, seed, trajectory)
            return split(rollout, ray.get_runtime_context().get_node_id())


class RewardActor:
    """A reward worker in its own process."""

    def __init__(self, name: str, threads: int) -> None:
        self._name, self._threads = name, threads
        self._reward: RewardLike | None = None

    def build(self, factory: bytes, paths: Sequence[str]) -> Built:
        """Build the reward worker from its pickled factory, which may import from the folders `paths` too."""
        import_from(paths)
        with errors_of(self._name), WarningCollector() as messages:
            self._reward = cloudpickle.loads(factory)()
            hold_torch_to(self._threads)
            identity, waits = identity_of_worker(self._reward), waits_of_worker(self._reward)
            return Built(os.getpid(), platform.node(), identity, messages.texts, waits)

    def begin(self) -> None:
        """As of the sampler."""

    def score(
        self, images: UInt8, chunk: PromptBatch, images_per_prompt: int, begun: None
    ) -> tuple[Float64, dict[str, Float64], float, tuple[str, ...]]:
        """Rewards, sub-scores, the seconds they took and the warnings, for the images of a chunk; `begun` as above."""
        assert self._reward is not None
        prompts = [text for text in chunk.texts for _ in range(images_per_prompt)]
        metadata = [meta for meta in chunk.metadata for _ in range(images_per_prompt)]
        with errors_of(f"{self._name}, {describe_chunk(chunk)}"), WarningCollector() as messages:
            start = time.perf_counter()
            rewards, sub_scores = self._reward.score(images, prompts, metadata, describe_chunk(chunk))
            return rewards, sub_scores, time.perf_counter() - start, messages.texts
