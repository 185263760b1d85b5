"""Sampling and scoring by actors on a Ray cluster, with the results of one process."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from prdp.cluster.actor_pool import ActorPool
from prdp.cluster.base import (
    ClusterError,
    Identity,
    OnChunk,
    RewardFactory,
    SamplerFactory,
    Workforce,
    check_images,
    check_request,
    describe_chunk,
)
from prdp.cluster.chunk_references import digest_of, lost_chunks, replaced
from prdp.cluster.dispatcher import Dispatcher
from prdp.cluster.environment import find_environment
from prdp.cluster.object_store import StoreReport
from prdp.cluster.placement import PlacementReservation, half_of, nodes_of_cluster, plan, pools_of
from prdp.cluster.ray_actors import RewardActor, SamplerActor
from prdp.cluster.ray_metrics import RayMetrics
from prdp.cluster.ray_session import connect
from prdp.cluster.rollout_job import RolloutJob
from prdp.cluster.threads import planned_threads
from prdp.cluster.time_limits import limits_of
from prdp.cluster.weight_transport import build_transport
from prdp.config import ClusterConfig
from prdp.support.remote_rows import RowsLostError
from prdp.types import PromptBatch, Rollout, UInt8, Weights

_log = logging.getLogger(__name__)


class RayWorkforce(Workforce):
    """A `Workforce` of sampler and reward actors.

    Args:
        sampler_factory: picklable, without arguments; builds the sampler inside each actor.
        reward_factory: likewise for the reward worker.
        config: the `cluster` section.
        prompts_per_chunk: whole prompt groups per unit of work.
        learner_device, places: see `build_workforce`.

    Attributes:
        plan: which actors there are and where they fit, in lines for people.

    Raises:
        ValueError: numbers that make no cluster, by key.
        ClusterSetupError: no Ray at the address, too few CPUs or GPUs in it, an environment that could not be made,
            reward actors of different versions, or not ready within `cluster.start_timeout_seconds`.
        Exception: what a factory raised, as itself.
    """

    def __init__(
        self,
        sampler_factory: SamplerFactory,
        reward_factory: RewardFactory,
        config: ClusterConfig,
        prompts_per_chunk: int,
        learner_device: str | None = None,
        places: Sequence[Any] = (),
    ) -> None:
        for key in ("samplers", "reward_actors"):
            if getattr(config, key) < 1:
                raise ValueError(f"cluster.{key} must be at least 1, got {getattr(config, key)}")
        if config.retries < 0:
            raise ValueError(f"cluster.retries must be 0 or more, got {config.retries}")
        threads = planned_threads(config)
        environment = None if config.reward_environment is None else find_environment(config.reward_environment)
        self._transport = build_transport(config, learner_device)
        self._prompts_per_chunk = prompts_per_chunk
        self._published: Identity | None = None
        self._weights: Any = None
        self._metrics: RayMetrics | None = None
        self._retries, self._restored = config.retries, Counter[str]()
        self._closed = False
        self._owns_ray = connect(config)
        self._reservation: PlacementReservation | None = None
        self._dispatcher: Dispatcher | None = None
        self._store = StoreReport()
        try:
            pools = pools_of(config)
            self.plan = plan(config, pools, nodes_of_cluster())
            workers = [pool for pool in pools if not pool.kind.startswith("learner")]
            self._reservation = PlacementReservation(workers, config.placement)
            self._reservation.wait(config.start_timeout_seconds)
            strategies = {pool.kind: self._reservation.strategies(pool.kind) for pool in workers}
            demands, timeout = {pool.kind: pool.demand for pool in pools}, config.start_timeout_seconds
            if places:
                strategies["sampler"] = list(places)
                demands["sampler"] = {**half_of(pools[0]), **config.sampler_resources}
            self._samplers, self._rewards = (
                ActorPool(kind, actor, factory, demands[kind], strategies[kind], threads, timeout, own)
                for kind, actor, factory, own in (
                    ("sampler", SamplerActor, sampler_factory, None),
                    ("reward actor", RewardActor, reward_factory, environment),
                )
            )
            self._dispatcher = Dispatcher(
                self._samplers, self._rewards, config.retries, limits_of(config), self._transport
            )
            self._dispatcher.start()
            self._dispatcher.await_ready()
        except BaseException:
            self.close()
            raise

    def publish(self, weights: Weights) -> None:
        """Make the weights ready to go; each sampler gets, binds and acknowledges them before it needs them."""
        self._open()
        self._weights = self._transport.publish(weights)
        self._published = (weights.version, weights.checksum)

    def submit(
        self, prompts: PromptBatch, *, images_per_prompt: int, seed: int, trajectory: bool = True, urgent: bool = False
    ) -> RolloutJob:
        dispatcher = self._open()
        check_request(prompts, images_per_prompt)
        chunks = prompts.chunks(self._prompts_per_chunk)
        job = RolloutJob(prompts, chunks, self._weights, self._published, images_per_prompt, seed, trajectory)
        dispatcher.submit(job, urgent)
        return job

    def score(
        self, images: UInt8, prompts: PromptBatch, *, images_per_prompt: int, on_chunk: OnChunk | None = None
    ) -> Rollout:
        dispatcher = self._open()
        check_images(images, prompts, images_per_prompt)
        chunks = prompts.chunks(self._prompts_per_chunk)
        job = RolloutJob(prompts, chunks, None, None, images_per_prompt, seed=0, trajectory=False, images=images)
        dispatcher.score(job)
        return job.result(on_chunk)

    def storage(self) -> dict[str, float]:
        return self._store.look()

    def restore(self, rollout: Rollout, error: RowsLostError) -> Rollout:
        dispatcher, lost = self._open(), lost_chunks(rollout, error.where)
        if not lost:
            raise error
        names = [describe_chunk(origin.prompts) for origin in lost]
        self._restored.update(names)
        times = max(self._restored[name] for name in names)
        if times > self._retries + 1:
            raise ClusterError(f"{error}; it was made again {times - 1} times (cluster.retries={self._retries})")
        _log.warning("%s; %d chunk(s) of this rollout are made again: %s", error, len(lost), "; ".join(names))
        request, chunks = lost[0].request, [origin.prompts for origin in lost]
        job = RolloutJob(
            request.prompts, chunks, request.weights, request.published, request.images_per_prompt, request.seed,
            request.trajectory, scores=False,
        )
        made: dict[str, Rollout] = {}
        dispatcher.submit(job, urgent=True)
        job.result(lambda chunk: made.update({describe_chunk(chunk.prompts): chunk}))
        for origin, name in zip(lost, names, strict=True):
            if digest_of(made[name]) != origin.digest:
                _log.warning(
                    "%s: made again, its arrays differ from those that are lost: their machines or threads are "
                    "not of one kind", name,
                )
        return replaced(rollout, made)

    @property
    def reward_identity(self) -> dict[str, Any]:
        return dict(self._rewards.identity or {})

    def status(self) -> dict[str, Any]:
        fault = None if self._dispatcher is None else self._dispatcher.supervisor.last_fault
        now = time.time()
        actors = [member.status(now) for pool in (self._samplers, self._rewards) for member in pool.members]
        return {"actors": actors, "last_fault": fault}

    def export_metrics(self, run: str, metrics: Mapping[str, float], epoch: int) -> None:
        if self._metrics is None:
            self._metrics = RayMetrics(run)
        restarts = sum(actor["restarts"] for actor in self.status()["actors"])
        self._metrics.log({**metrics, "restarts": restarts}, epoch)

    def close(self) -> None:
        if self._closed:
            return
        self._closed, self._weights = True, None
        if ray.is_initialized():
            if self._dispatcher is not None:
                self._dispatcher.close()
            if self._reservation is not None:
                self._reservation.close()
            if self._owns_ray:
                ray.shutdown()

    @property
    def process_ids(self) -> Mapping[str, int]:
        """Actor name -> process id, on whichever node it runs."""
        return {member.name: member.pid for pool in (self._samplers, self._rewards) for member in pool.members}

    def _open(self) -> Dispatcher:
        if self._closed or self._dispatcher is None:
            raise RuntimeError("this workforce is closed")
        return self._dispatcher
