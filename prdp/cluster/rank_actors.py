"""A learner's ranks as Ray actors, each with GPUs of its own, on any node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from prdp.cluster.actor_pool import LostError, actor_variables, fetch_result
from prdp.cluster.placement import PlacementReservation, half_of, nodes_of_cluster, plan, pools_of
from prdp.cluster.rank_host import RankHost
from prdp.cluster.ray_session import connect
from prdp.cluster.remote_ranks import RankFactory, RemoteRanks, StillWaitingError
from prdp.config import ClusterConfig
from prdp.support.rank_errors import RankLostError

KIND = "learner rank"


class RankActor:
    """A `RankHost` as an actor."""

    def __init__(self, name: str, threads: int) -> None:
        self._host = RankHost(name, threads, ray.util.get_node_ip_address())

    def call(self, method: str, *arguments: Any) -> Any:
        """See `RankHost.call`."""
        return self._host.call(method, *arguments)


class RankActors(RemoteRanks):
    """See `RemoteRanks`. Arguments travel through the object store, straight to the node of the one who needs them.

    Args:
        places: see `start_ranks`.

    Raises:
        ClusterSetupError: no Ray at the address, or no room for the ranks beside what else is asked for.
    """

    def __init__(
        self, config: ClusterConfig, factories: Sequence[RankFactory], backend: str, places: Sequence[Any] = ()
    ) -> None:
        self._owns_ray = connect(config)
        self._reservation: PlacementReservation | None = None
        self._handles: dict[int, Any] = {}
        try:
            super().__init__(config, factories, backend, ray.util.get_node_ip_address())
            pools = pools_of(config)
            plan(config, pools, nodes_of_cluster())
            if places:
                demand, self._strategies = half_of(pools[0]), list(places[1:])
            else:
                (own,) = (pool for pool in pools if pool.kind == KIND)
                self._reservation = PlacementReservation([own], config.placement)
                self._reservation.wait(config.start_timeout_seconds)
                demand, self._strategies = own.demand, self._reservation.strategies(KIND)
            gpus = demand.get("GPU", 0)
            self._actor = ray.remote(RankActor)
            self._options = {
                "num_cpus": demand.get("CPU", 1),
                "num_gpus": gpus,
                "max_restarts": 0,
                "max_task_retries": 0,
                "runtime_env": {"env_vars": actor_variables(self.threads, bool(gpus), None)},
            }
            self.start_all()
        except BaseException:
            self.close()
            raise

    def start(self, number: int) -> None:
        strategy = self._strategies[number - 1]
        placement = {} if strategy is None else {"scheduling_strategy": strategy}
        name = f"learner rank {number}"
        self._handles[number] = self._actor.options(**self._options, **placement).remote(name, self.threads)

    def send(self, number: int, method: str, arguments: tuple[Any, ...]) -> _WaitingActor:
        return _WaitingActor(self._handles[number].call.remote(method, *arguments), number, self)

    def kill(self, number: int) -> None:
        """Ray sends SIGKILL to a process that has not ended by itself within 5 seconds, as a stopped one cannot."""
        if number in self._handles:
            ray.kill(self._handles[number], no_restart=True)

    def close(self) -> None:
        self.leave()
        if ray.is_initialized():
            for number in self._handles:
                self.kill(number)
            if self._reservation is not None:
                self._reservation.close()
            if self._owns_ray:
                ray.shutdown()
        self._handles, self._reservation = {}, None


class _WaitingActor:
    def __init__(self, reference: Any, number: int, ranks: RankActors) -> None:
        self._reference, self._number, self._ranks = reference, number, ranks

    def wait(self, seconds: float) -> Any:
        ready, _ = ray.wait([self._reference], timeout=max(seconds, 0.0))
        if not ready:
            raise StillWaitingError
        try:
            return fetch_result(self._reference)
        except LostError as error:
            raise RankLostError(f"{self._ranks.name(self._number)} died: {error}", self._number) from None
