"""A GPU that Ray keeps free for the learner, which lives in the driver and not in an actor."""

from __future__ import annotations

import ray

from prdp.cluster.base import ClusterError
from prdp.cluster.placement import PlacementReservation, half_of, nodes_of_cluster, plan, pools_of
from prdp.cluster.ray_session import connect
from prdp.config import ClusterConfig


class GpuReservation:
    """Claims `cluster.learner_gpus` on the driver's node, before the samplers can be given them.

    Args:
        config: the `cluster` section.

    Attributes:
        device: the one to learn on, 'cuda:2' for instance.
        places: scheduling strategies of Ray's, one for each process that learns and the sampler that shares its GPU,
            this process first; none where they share none.

    Raises:
        ClusterSetupError: this node has no such GPUs, or the cluster cannot hold the actors beside it.
        ClusterError: the actor that holds them does not start.
    """

    def __init__(self, config: ClusterConfig) -> None:
        self._reservation: PlacementReservation | None = None
        self._owns_ray = connect(config)
        try:
            pools = pools_of(config)
            plan(config, pools, nodes_of_cluster())
            pairs = [pool for pool in pools if config.colocate and pool.kind.startswith("learner")]
            self._reservation = PlacementReservation(pairs or pools[:1], config.placement if pairs else "pack")
            self._reservation.wait(config.start_timeout_seconds)
            demand = half_of(pools[0]) if pairs else pools[0].demand
            self.places = [place for pool in pairs for place in self._reservation.strategies(pool.kind)]
            (strategy,) = self._reservation.strategies(pools[0].kind)
            self._holder = (
                ray.remote(GpuHolder)
                .options(num_cpus=demand["CPU"], num_gpus=demand["GPU"], scheduling_strategy=strategy)
                .remote()
            )
            try:
                gpu = ray.get(self._holder.gpu.remote(), timeout=config.start_timeout_seconds)
            except ray.exceptions.GetTimeoutError:
                seconds = f"cluster.start_timeout_seconds={config.start_timeout_seconds:g}"
                raise ClusterError(f"the actor that holds the learner's GPU did not start within {seconds}") from None
            self.device = f"cuda:{gpu}"
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the GPUs, and of Ray when this reservation started or joined it."""
        if ray.is_initialized():
            if self._owns_ray:
                ray.shutdown()
            elif self._reservation is not None:
                self._reservation.close()


class GpuHolder:
    """The actor that Ray counts the learner's GPUs to."""

    def gpu(self) -> int:
        """Number of the first GPU that Ray gave to it."""
        return int(ray.get_gpu_ids()[0])
