"""Who does the sampling and scoring: actors on a Ray cluster, or the same plain classes in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prdp.config import CLUSTER_KINDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prdp.cluster.base import RewardFactory, SamplerFactory, Workforce
    from prdp.cluster.gpu_reservation import GpuReservation
    from prdp.cluster.remote_ranks import RankFactory, RemoteRanks
    from prdp.config import ClusterConfig


def build_workforce(
    config: ClusterConfig,
    sampler_factory: SamplerFactory,
    reward_factory: RewardFactory,
    prompts_per_chunk: int,
    learner_device: str | None = None,
    places: Sequence[Any] = (),
) -> Workforce:
    """Build the workforce that `config.kind` names; only 'ray' imports Ray.

    Args:
        config: the `cluster` section of the configuration.
        sampler_factory: picklable and without arguments, such as `functools.partial(Sampler, ...)`; runs in the actor.
        reward_factory: likewise, such as `functools.partial(RewardWorker, reward_config)`.
        prompts_per_chunk: whole prompt groups per unit of work.
        learner_device: where the weights that will be published are learned, such as 'cuda:0'; None where there is no
            learner, which leaves `config.weight_transport` without meaning.
        places: of samplers that share GPUs with learners, see `GpuReservation.places`.

    Raises:
        ValueError: an unknown kind, or numbers that make no cluster.
        ClusterSetupError: the cluster lacks the processors or GPUs asked for, or torch the backend.
    """
    if config.kind == "inline":
        from prdp.cluster.inline import InlineWorkforce

        return InlineWorkforce(sampler_factory, reward_factory, prompts_per_chunk, config)
    if config.kind == "ray":
        from prdp.cluster.ray_workforce import RayWorkforce

        return RayWorkforce(sampler_factory, reward_factory, config, prompts_per_chunk, learner_device, places)
    raise ValueError(f"cluster.kind is {config.kind!r}; expected one of {', '.join(CLUSTER_KINDS)}")


def reserve_learner(config: ClusterConfig) -> GpuReservation | None:
    """Have Ray keep GPUs free for the learner, before anything else is placed; None when it is not asked to.

    Raises:
        ClusterSetupError: there is no Ray at the address, or no such GPUs.
    """
    if config.kind != "ray" or not config.learner_gpus:
        return None
    from prdp.cluster.gpu_reservation import GpuReservation

    return GpuReservation(config)


def start_ranks(
    config: ClusterConfig, factories: Sequence[RankFactory], backend: str, places: Sequence[Any] = ()
) -> RemoteRanks | None:
    """Start the learner's ranks but rank 0, which is this process, without waiting for them; None for no such.

    Args:
        config: the `cluster` section; `learners` says how many there are.
        factories: picklable and without arguments, of each of these ranks.
        backend: what gradients are summed by: 'gloo' or 'nccl'.
        places: of processes that share GPUs with samplers, see `GpuReservation.places`.

    Raises:
        ClusterSetupError: there is no Ray at the address, or no room.
    """
    if config.learners == 1:
        return None
    if config.kind == "inline":
        from prdp.cluster.rank_processes import RankProcesses

        return RankProcesses(config, factories, backend)
    from prdp.cluster.rank_actors import RankActors

    return RankActors(config, factories, backend, places)
