"""What a training run is built of: the learner with its other processes, samplers and rewards, and their queue."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from prdp.cluster import build_workforce, reserve_learner, start_ranks
from prdp.cluster.base import RewardWorker, SamplerFactory, SamplerLike, Workforce
from prdp.cluster.remote_ranks import RemoteRanks
from prdp.cluster.rollout_queue import RolloutQueue
from prdp.config import ModelConfig, TrainConfig
from prdp.diffusion.policy import Policy
from prdp.diffusion.turns import taking_turns
from prdp.diffusion.weights import TrainableWeights
from prdp.image_sets.source import RolloutSource
from prdp.learners import RankSettings, build_rank, learner_of, learner_policy
from prdp.prompts.stream import PromptStream

if TYPE_CHECKING:
    from prdp.learners.learner import Learner


@dataclass(frozen=True)
class LearnerParts:
    """The learner and where it is.

    Args:
        model: as configured, on the device that the learner got.
        places: of the cluster, one for each process of the learner; empty where none is reserved.
        ranks: the other processes, if there are any.
        policy: of this process.
    """

    model: ModelConfig
    places: Sequence[Any]
    ranks: RemoteRanks | None
    policy: Policy
    learner: Learner

    def rest(self, config: TrainConfig) -> None:
        """Have the learner make room on devices that it shares with samplers; it takes it again when it needs it."""
        if config.cluster.colocate:
            self.learner.rest(fixed=config.cluster.kind == "ray")

    def status(self, workforce: Workforce) -> dict[str, Any]:
        """Who works where, the learner's other processes included; see `Workforce.status`."""
        status = workforce.status()
        if self.ranks is None:
            return status
        faults = [fault for fault in (status["last_fault"], self.ranks.last_fault) if fault is not None]
        fault = max(faults, key=lambda one: float(one["time"]), default=None)
        return {"actors": [*status["actors"], *self.ranks.status()], "last_fault": fault}

    def whole_policy(self, config: TrainConfig) -> Policy:
        """A policy with all rows of the network, on the host where the learner's processes have some rows each."""
        if config.cluster.fsdp_size == 1:
            return self.policy
        return learner_policy(dataclasses.replace(config.model, device="cpu"), config.learner, config.seed)


def build_learner(config: TrainConfig, held: contextlib.ExitStack) -> LearnerParts:
    """The learner, where the cluster wants it. What is to be let go of at the end goes to `held`."""
    model, gpu = config.model, reserve_learner(config.cluster)
    places: Sequence[Any] = () if gpu is None else gpu.places
    if gpu is not None:
        held.callback(gpu.close)
        model = dataclasses.replace(model, device=gpu.device)
    ranks = _start_ranks(config, places)
    if ranks is not None:
        held.callback(ranks.close)
    policy = learner_policy(model, config.learner, config.seed, config.cluster.fsdp_size)
    return LearnerParts(model, places, ranks, policy, learner_of(config, policy, ranks))


def _start_ranks(config: TrainConfig, places: Sequence[Any]) -> RemoteRanks | None:
    """The other processes of the learner; of one machine's GPUs each takes its own, as Ray's actors do."""
    cluster = config.cluster
    if cluster.learners == 1:
        return None
    from prdp.diffusion.pipeline_loading import device_of

    settings = RankSettings.of(config)
    gpu = device_of(settings.model).startswith("cuda")
    own = gpu and cluster.kind == "inline"
    each = [settings.on_gpu(number) if own else settings for number in range(1, cluster.learners)]
    backend = "nccl" if gpu and config.learner.framework == "torch" else "gloo"
    return start_ranks(cluster, [partial(build_rank, one) for one in each], backend, places)


def build_workforce_of(
    config: TrainConfig, source: RolloutSource, parts: LearnerParts, held: contextlib.ExitStack
) -> Workforce:
    """Samplers and rewards of a run."""
    factory = source.sampler_factory(parts.learner.recorder)
    inline = config.cluster.kind == "inline"
    if inline:
        factory = partial(_on_one_base, factory, parts.policy)
    if config.cluster.colocate:
        factory = partial(taking_turns, factory, parts.policy if inline else None)
    workforce: Workforce = build_workforce(
        config.cluster,
        factory,
        partial(RewardWorker, source.reward(), config.cluster.reward_retries),
        config.sampler.prompts_per_chunk,
        parts.model.device,
        parts.places,
    )
    held.callback(workforce.close)
    return workforce


def rollout_queue(
    config: TrainConfig, source: RolloutSource, workforce: Workforce, stream: PromptStream
) -> RolloutQueue:
    """The queue of what is asked of the samplers."""
    return RolloutQueue(
        workforce,
        stream,
        prompts_per_epoch=config.prompts_per_epoch,
        images_per_prompt=config.images_per_prompt,
        seed=config.seed,
        epochs=config.epochs,
        max_staleness=config.cluster.max_staleness,
        online=config.rollout_policy == "current",
        drawn=source.drawn,
    )


def _on_one_base(factory: SamplerFactory, learner: Policy) -> SamplerLike:
    """The sampler beside a learner in this process, with the learner's frozen tensors in place of its own."""
    sampler = factory()
    theirs = getattr(getattr(sampler, "policy", None), "weights", None)
    if isinstance(theirs, TrainableWeights) and isinstance(learner.weights, TrainableWeights):
        theirs.share_fixed(learner.weights)
    return sampler
