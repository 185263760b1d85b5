"""Where the actors go: pools of equal actors, whether the nodes hold them, and their reserved resources."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from prdp.cluster.base import ClusterSetupError
from prdp.cluster.threads import planned_threads
from prdp.config import ClusterConfig

_log = logging.getLogger(__name__)

Demand = Mapping[str, float]
_WAITING_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class PoolRequest:
    """Actors of one kind: how many, and what each of them claims, such as {"CPU": 1, "GPU": 0.5}."""

    kind: str
    count: int
    demand: Demand


@dataclasses.dataclass(frozen=True)
class Node:
    """A machine of the cluster, with all it has, whether free or not."""

    name: str
    resources: Mapping[str, float]


def pools_of(config: ClusterConfig) -> list[PoolRequest]:
    """The pools that a configuration asks for; that of the learner in this process only when it claims a GPU.

    On a private Ray actors claim no CPUs, so that a small machine runs many, only slower. Learners and samplers that
    share GPUs are pairs, a GPU each, and that of this process comes first.
    """
    cpus = 0.0 if config.address == "local" else float(planned_threads(config))
    here = {f"node:{ray.util.get_node_ip_address()}": 0.001}
    demand = _demand(cpus, config.reward_gpus, config.reward_resources)
    rewards = PoolRequest("reward actor", config.reward_actors, demand)
    if config.colocate and config.learner_gpus:
        both = _demand(2 * cpus, config.learner_gpus, config.sampler_resources)
        pairs = [PoolRequest("learner and sampler pair", 1, {**both, **here})]
        if config.learners > 1:
            pairs.append(PoolRequest("learner rank and sampler pair", config.learners - 1, both))
        return [*pairs, rewards]
    pools = [
        PoolRequest("sampler", config.samplers, _demand(cpus, config.sampler_gpus, config.sampler_resources)),
        rewards,
    ]
    if config.learners > 1:
        pools.insert(0, PoolRequest("learner rank", config.learners - 1, _demand(cpus, config.learner_gpus, {})))
    if config.learner_gpus:
        pools.insert(0, PoolRequest("learner", 1, _demand(cpus, config.learner_gpus, here)))
    return pools


def half_of(pair: PoolRequest) -> Demand:
    """What a learner, or a sampler, claims of what a pair of both has: they get the same GPU."""
    return {name: pair.demand[name] / 2 for name in ("CPU", "GPU")}


def nodes_of_cluster() -> list[Node]:
    """The machines that are alive."""
    return [Node(node["NodeManagerAddress"], dict(node["Resources"])) for node in ray.nodes() if node["Alive"]]


def assign(pools: Sequence[PoolRequest], nodes: Sequence[Node], spread: bool = False) -> list[Counter[str]] | None:
    """Place every actor on a node, the most demanding first, were all nodes free.

    Args:
        spread: prefer the node with the fewest actors over the first one with room.

    Returns:
        for each node, how many actors of each kind it gets; None when they do not fit.
    """
    room = [dict(node.resources) for node in nodes]
    placed: list[Counter[str]] = [Counter() for _ in nodes]
    actors = [pool for pool in pools for _ in range(pool.count)]
    for pool in sorted(actors, key=lambda one: (one.demand.get("GPU", 0), one.demand.get("CPU", 0)), reverse=True):
        order = sorted(range(len(nodes)), key=lambda index: placed[index].total()) if spread else range(len(nodes))
        index = next((index for index in order if _has_room(room[index], pool.demand)), None)
        if index is None:
            return None
        for name, amount in pool.demand.items():
            room[index][name] = room[index].get(name, 0) - amount
        placed[index][pool.kind] += 1
    return placed


def plan(config: ClusterConfig, pools: Sequence[PoolRequest], nodes: Sequence[Node]) -> str:
    """What is asked for, and which node could hold it, in lines for people.

    Raises:
        ClusterSetupError: the nodes, were they all free, could not hold it, and no autoscaler will add some: Ray itself
            would wait for ever. With what is asked and what is there.
    """
    placed = assign(pools, nodes, config.placement == "spread")
    asked = ", ".join(_asked(pool) for pool in pools)
    if placed is None:
        there = "; ".join(f"{node.name} with {_amounts(node.resources, pools)}" for node in nodes)
        message = (
            f"the cluster ({config.address}) cannot hold {asked}: in all {_amounts(_total(pools), pools)}; there are "
            f"{len(nodes)} node(s): {there}"
        )
        if config.autoscaling:
            _log.warning("%s; waiting for its autoscaler", message)
            return f"cluster: {asked}; on nodes that the autoscaler has to add"
        raise ClusterSetupError(
            f"{message}. Ask for less (cluster.samplers, sampler_gpus, reward_actors, reward_gpus, learner_gpus, "
            "threads), add nodes, or set cluster.autoscaling=true if the cluster adds them by itself"
        )
    if not config.sampler_gpus and any(node.resources.get("GPU") for node in nodes):
        _log.warning("the cluster has GPUs, but cluster.sampler_gpus is 0: the samplers run on the CPU")
    lines = [f"cluster: {asked}; {config.placement} over {len(nodes)} node(s), for instance"]
    for node, kinds in zip(nodes, placed, strict=True):
        if kinds:
            who = ", ".join(f"{count} {kind}{'s' * (count > 1)}" for kind, count in kinds.items())
            lines.append(f"  {node.name}  {_amounts(node.resources, pools)}: {who}")
    return "\n".join(lines)


class PlacementReservation:
    """A placement group with one bundle for each actor, or none where actors claim nothing.

    Args:
        pools: what to reserve for.
        strategy: 'pack' on few nodes, 'spread' over many.
    """

    def __init__(self, pools: Sequence[PoolRequest], strategy: str) -> None:
        self._pools = pools
        bundles = [_claimed(pool.demand) for pool in pools for _ in range(pool.count)]
        self._group: PlacementGroup | None = None
        if bundles and all(bundles):
            self._group = placement_group(bundles, strategy=strategy.upper())

    def wait(self, seconds: float) -> None:
        """Wait until the resources are reserved; says so when that takes long.

        Raises:
            ClusterSetupError: not within `seconds`; what is asked, and what is free.
        """
        waited = 0.0
        while self._group is not None and not self._group.wait(min(_WAITING_SECONDS, seconds - waited)):
            waited += _WAITING_SECONDS
            asked = ", ".join(_asked(pool) for pool in self._pools)
            free = _amounts(ray.available_resources(), self._pools)
            if waited >= seconds:
                raise ClusterSetupError(
                    f"no room for {asked} within cluster.start_timeout_seconds={seconds:g}; free in the cluster: {free}"
                )
            _log.warning("still waiting for room for %s; free in the cluster: %s", asked, free)

    def strategies(self, kind: str) -> list[Any]:
        """The scheduling strategy of each actor of a pool; None for anywhere."""
        first = 0
        for pool in self._pools:
            if pool.kind == kind:
                return [self._strategy(first + index) for index in range(pool.count)]
            first += pool.count
        raise ValueError(f"no pool of {kind}s")

    def close(self) -> None:
        """Give the resources back."""
        if self._group is not None:
            ray.util.remove_placement_group(self._group)
            self._group = None

    def _strategy(self, bundle: int) -> Any:
        if self._group is None:
            return None
        return PlacementGroupSchedulingStrategy(placement_group=self._group, placement_group_bundle_index=bundle)


def _demand(cpus: float, gpus: float, others: Mapping[str, float]) -> Demand:
    return {"CPU": cpus, **({"GPU": gpus} if gpus else {}), **others}


def _claimed(demand: Demand) -> dict[str, float]:
    return {name: amount for name, amount in demand.items() if amount}


def _has_room(room: Mapping[str, float], demand: Demand) -> bool:
    return all(room.get(name, 0) + 1e-9 >= amount for name, amount in demand.items())


def _asked(pool: PoolRequest) -> str:
    each = " and ".join(f"{amount:g} {name}" for name, amount in pool.demand.items() if not name.startswith("node:"))
    return f"{pool.count} {pool.kind}{'s' * (pool.count > 1)} of {each}"


def _total(pools: Sequence[PoolRequest]) -> dict[str, float]:
    total: Counter[str] = Counter()
    for pool in pools:
        for name, amount in pool.demand.items():
            total[name] += amount * pool.count  # type: ignore[assignment]
    return dict(total)


def _amounts(resources: Mapping[str, float], pools: Sequence[PoolRequest]) -> str:
    """The resources that matter here, for messages: '8 CPU, 1 GPU'."""
    names = dict.fromkeys(["CPU", "GPU", *(name for pool in pools for name in pool.demand)])
    return ", ".join(f"{resources.get(name, 0):g} {name}" for name in names if not name.startswith("node:"))
