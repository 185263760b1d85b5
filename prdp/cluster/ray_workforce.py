"""Sampling and scoring by actors on a Ray cluster, with the results of one process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray

from prdp.cluster.base import OnChunk, RewardFactory, SamplerFactory, acknowledged, check_request
from prdp.cluster.environment import find_environment
from prdp.cluster.ray_actors import RewardActor, SamplerActor
from prdp.cluster.ray_crew import Crew, LostError, Member, one_identity, settle
from prdp.cluster.ray_round import Round
from prdp.cluster.ray_session import Demand, connect
from prdp.cluster.threads import planned_threads
from prdp.config import ClusterConfig
from prdp.types import PromptBatch, Rollout, Weights


class RayWorkforce:
    """A `Workforce` of sampler and reward actors.

    Args:
        sampler_factory: picklable, without arguments; builds the sampler inside each actor.
        reward_factory: likewise for the reward worker.
        config: the `cluster` section.
        prompts_per_chunk: whole prompt groups per unit of work.

    Raises:
        ValueError: numbers that make no cluster, by key.
        ClusterSetupError: no Ray at the address, too few CPUs or GPUs in it, an environment that could not be made, or
            reward actors of different versions.
        Exception: what a factory raised, as itself.
    """

    def __init__(
        self,
        sampler_factory: SamplerFactory,
        reward_factory: RewardFactory,
        config: ClusterConfig,
        prompts_per_chunk: int,
    ) -> None:
        for key in ("samplers", "reward_actors"):
            if getattr(config, key) < 1:
                raise ValueError(f"cluster.{key} must be at least 1, got {getattr(config, key)}")
        if config.retries < 0:
            raise ValueError(f"cluster.retries must be 0 or more, got {config.retries}")
        threads = planned_threads(config)
        sampler_demands = _demands(config, config.samplers, config.sampler_gpus)
        reward_demands = _demands(config, config.reward_actors, config.reward_gpus)
        environment = None if config.reward_environment is None else find_environment(config.reward_environment)
        self._prompts_per_chunk = prompts_per_chunk
        self._reward_timeout = config.reward_timeout_seconds
        self._published: Weights | None = None
        self._reference: Any = None
        self._closed = False
        self._owns_ray = connect(config, [*sampler_demands, *reward_demands])

        self._samplers = Crew(
            "sampler", SamplerActor, sampler_factory, sampler_demands, threads, config.retries, on_restart=self._bind
        )
        self._rewards = Crew(
            "reward actor", RewardActor, reward_factory, reward_demands, threads, config.retries, environment
        )
        try:
            self._samplers.launch()
            self._rewards.launch()
            self._samplers.await_ready()
            self._rewards.await_ready()
            self.reward_identity: dict[str, Any] = one_identity(self._rewards.members)
        except BaseException:
            self.close()
            raise

    def publish(self, weights: Weights) -> None:
        """Put the weights into the object store once and wait until every sampler has bound and acknowledged them.

        Raises:
            WeightsMismatchError: a sampler acknowledged another version or checksum.
            ClusterError: a sampler keeps dying.
        """
        self._check_open()
        self._reference = None
        self._reference = ray.put(weights)
        self._published = Weights(weights.version, {}, weights.checksum)
        bindings = [(member, member.handle.load_weights.remote(self._reference)) for member in self._samplers.members]
        answers = {}
        for member, binding in bindings:
            try:
                answers[member.name] = settle(binding)
            except LostError as error:
                self._samplers.replace(member, error)
        acknowledged(weights, answers)

    def sample(
        self,
        prompts: PromptBatch,
        *,
        images_per_prompt: int,
        seed: int,
        trajectory: bool = True,
        on_chunk: OnChunk | None = None,
    ) -> Rollout:
        """Sample and score, chunks shared out among the actors; see `Workforce.sample`.

        Raises:
            ClusterError: on a chunk, more than `cluster.retries` actors died or hung; names it and the last cause.
            WeightsMismatchError: a rollout was made by other weights than were published.
            Exception: what the sampler or the reward raised, as itself, never retried.
        """
        self._check_open()
        check_request(prompts, images_per_prompt)
        work = Round(
            self._samplers,
            self._rewards,
            self._published,
            prompts.chunks(self._prompts_per_chunk),
            images_per_prompt=images_per_prompt,
            seed=seed,
            trajectory=trajectory,
            on_chunk=on_chunk,
            reward_timeout=self._reward_timeout,
        )
        return Rollout.concatenate(work.run())

    def close(self) -> None:
        """End the actors, and Ray too when this workforce started or joined it."""
        if self._closed:
            return
        self._closed, self._reference = True, None
        if ray.is_initialized():
            self._samplers.close()
            self._rewards.close()
            if self._owns_ray:
                ray.shutdown()

    @property
    def process_ids(self) -> Mapping[str, int]:
        """Actor name -> process id, on whichever node it runs."""
        return {member.name: member.pid for crew in (self._samplers, self._rewards) for member in crew.members}

    def _bind(self, member: Member) -> None:
        """A restarted sampler samples only after it acknowledged the published weights."""
        if self._published is not None:
            answer = settle(member.handle.load_weights.remote(self._reference))
            acknowledged(self._published, {member.name: answer})

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("this workforce is closed")


def _demands(config: ClusterConfig, count: int, gpus: float) -> list[Demand]:
    """What each of `count` actors claims; on a private Ray no CPUs, so that a small machine runs many, only slower."""
    cpus = 0 if config.address == "local" else planned_threads(config)
    return [{"CPU": float(cpus), **({"GPU": gpus} if gpus else {})} for _ in range(count)]
